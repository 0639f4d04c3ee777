"""Training that is killed, signalled, out of disk space or started twice; the reference is an uninterrupted run."""

import json
import random
import resource
import signal
import time

import jax
import numpy as np
import pytest

from dit_jax.data import shapes
from dit_jax.errors import UserError, explain
from dit_jax.jobs import train
from dit_jax.system.lock import only_trainer
from dit_jax.training import loop
from tests import process, tiny

EVERY = 40  # steps between checkpoints
SETTINGS = [f"train.checkpoint_every={EVERY}", "train.log_every=2"]


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Returns (data_dir with 64 training images, folder for compiled programs)."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_EXAMPLES", {"train": 64, "test": 10})
        shapes.prepare(folder / "data")
    return folder / "data", folder / "cache"


def undisturbed(place, workdir, *settings):
    """Returns the final state of an uninterrupted run; the first such run also fills the compilation cache."""
    code, told = process.finish(process.start(place[0], workdir, place[1], *settings))
    assert code == 0, told
    return process.final_state(workdir)


def assert_same_run(workdir, expected):
    jax.tree.map(np.testing.assert_array_equal, process.final_state(workdir), expected)


def rows_of(workdir):
    """Returns the rows of metrics.jsonl without the speed, the only value that may differ."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


MOMENTS = ("start", "step", "save")


def kill_somewhere(run, workdir, moment, rng):
    """Kills a process at or soon after `moment`; returns (step of the newest row, whether a save was under way)."""
    had = process.checkpoints(workdir)
    if moment == "start":  # during the imports, the restore, the compilation or the first steps
        time.sleep(rng.uniform(0, 8))
    else:
        process.wait_for(lambda: process.checkpoints(workdir) != had, run)
        time.sleep(rng.uniform(0, 0.3))
    if moment == "save":
        process.wait_for(lambda: any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp")), run)
        time.sleep(rng.uniform(0, 0.05))
    process.kill(run)
    return process.last_row(workdir), any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))


def killed_and_resumed(place, folder, kills, steps):
    """Kills one run `kills` times and asserts what each kill may cost; returns how many kills fell within a save."""
    rng, settings, in_save = random.Random(steps), [*SETTINGS, f"train.steps={steps}"], 0
    expected = undisturbed(place, folder / "whole", *settings)
    workdir = folder / "killed"
    for i in range(kills):
        run = process.start(place[0], workdir, place[1], *settings)
        moment = MOMENTS[(i + 1) % 3]
        at, now_saving = kill_somewhere(run, workdir, moment, rng)
        assert run.returncode == -signal.SIGKILL, "the run was over before its kill: give it more steps"
        newest = max(process.checkpoints(workdir), default=0)
        # A kill loses up to one interval, and another one if the previous save was still being written. The next start
        # removes what is left of that save before the rows after the checkpoint: a kill in between shows two as well.
        assert at - newest <= (2 if now_saving or moment == "start" else 1) * EVERY
        in_save += now_saving
    code, told = process.finish(process.start(place[0], workdir, place[1], *settings))
    assert code == 0, told
    assert any(f"resuming {workdir} at step" in line for line in told)
    assert_same_run(workdir, expected)
    rows = [rows_of(run) for run in (workdir, folder / "whole")]
    assert rows[0] == rows[1]  # none lost, repeated or changed
    assert [row["step"] for row in rows[0]] == list(range(2, steps + 1, 2))
    return in_save


@pytest.mark.long
def test_two_kills_cost_no_bit(place, tmp_path):
    killed_and_resumed(place, tmp_path, kills=2, steps=240)


@pytest.mark.slow
def test_twenty_kills_cost_no_bit(place, tmp_path):
    assert killed_and_resumed(place, tmp_path, kills=20, steps=6000) >= 3


@pytest.mark.long
def test_a_streamed_run_that_is_killed_and_asked_to_end_is_the_resident_one(place, tmp_path):
    """SIGKILL while batches are being read, then SIGTERM, which ends the reading threads, then the rest of the run."""
    settings = [*SETTINGS, "train.steps=1000"]
    expected = undisturbed(place, tmp_path / "resident", *settings)
    workdir, settings = tmp_path / "streamed", [*settings, "data.resident=false"]
    run = process.start(place[0], workdir, place[1], *settings)
    process.wait_for(lambda: process.last_row(workdir) >= 2 * EVERY, run)
    process.kill(run)
    assert run.returncode == -signal.SIGKILL
    run = process.start(place[0], workdir, place[1], *settings)
    before = process.last_row(workdir)
    process.wait_for(lambda: process.last_row(workdir) > before + 10, run)
    run.send_signal(signal.SIGTERM)
    code, told = process.finish(run)
    assert code == 143, told
    code, told = process.finish(process.start(place[0], workdir, place[1], *settings))
    assert code == 0, told
    assert_same_run(workdir, expected)
    assert rows_of(workdir)[-1] == rows_of(tmp_path / "resident")[-1]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_asked_to_end_saves_and_goes_on(number, code, place, tmp_path):
    settings = [f"train.checkpoint_every={10**6}", "train.log_every=2", "train.steps=4000"]
    run = process.start(place[0], tmp_path, place[1], *settings)
    process.wait_for(lambda: process.last_row(tmp_path) >= 6, run)
    run.send_signal(number)
    got, told = process.finish(run)
    assert got == code, told
    (saved,) = process.checkpoints(tmp_path)  # none was due: this one was saved on request
    assert f"{signal.Signals(number).name}: finishing the steps under way, then saving" in "\n".join(told)
    assert told[-1] == f"saved step {saved} of 4000 in {tmp_path}; the same command resumes the run"
    assert 6 <= saved < 4000
    assert not (tmp_path / ".lock").exists()


@pytest.mark.long
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_ctrl_c_while_sampling_compiles_ends_it(seconds, read, place, tmp_path):
    """Also if nobody reads what it prints: `| tee` ends at the same Ctrl-C. A crash of the compiler would be -11."""
    undisturbed(place, tmp_path, "train.steps=2")
    more = {"flags": ["--mode=sample"], "environ": {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONUNBUFFERED": ""}}
    settings = ["train.steps=2", "sample.n=200", "sample.steps=1000"]
    with process.as_in_a_terminal():
        run = process.start(place[0], tmp_path, place[1], *settings, **more)
    assert any("compiling" in line for line in run.stderr)
    if not read:
        run.stderr.close()
    time.sleep(seconds)
    run.send_signal(signal.SIGINT)
    if read:
        assert process.finish(run)[1][-1] == "interrupted"
    assert run.wait(60) == 130
    assert not (tmp_path / "samples" / "samples.npz").exists()


def in_process(workdir, **settings):
    return train.train(tiny.config(**settings), workdir, None)


@pytest.fixture
def tiny_data(monkeypatch):
    tiny.install(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of an uninterrupted tiny run of six steps."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        assert in_process(folder, train__steps=6) == 0
        return process.final_state(folder)


@pytest.mark.long
@pytest.mark.parametrize(("section", "measured"), [("autoencoder", "latents.json"), ("classifier", "accuracy.json")])
def test_a_signal_in_the_last_steps_of_a_network_that_is_measured_then_is_obeyed(
    section, measured, tiny_data, tmp_path, capfd, monkeypatch
):
    """The main run, which has nothing left to do after its last step, ends with exit code 0."""
    real = loop.run

    def run(*given):
        step = real(*given)
        signal.raise_signal(signal.SIGTERM)
        return step

    monkeypatch.setattr(loop, "run", run)
    flags = ["--workdir", tmp_path, *tiny.flags(train__steps=2)]
    assert tiny.run_main(capfd, *flags, f"--mode=train_{section}").code == 143
    assert process.checkpoints(tmp_path / section) == [2]
    assert not (tmp_path / section / measured).exists()
    assert tiny.run_main(capfd, *flags, f"--mode=train_{section}").code == 0
    assert (tmp_path / section / measured).exists()
    assert tiny.run_main(capfd, *flags).code == 0


class Timed:
    """A clock that is past any time limit once it has been read `questions` times."""

    def __init__(self, questions):
        self.left = questions

    def __call__(self):
        self.left -= 1
        return 1e6 if self.left < 0 else 0.0


@pytest.mark.medium
def test_a_run_that_ends_by_its_time_limit_goes_on_to_the_bit(whole, tiny_data, tmp_path, monkeypatch):
    stop = train.Stop
    # The first dispatch, of one step, is made whatever the time is; after it, the time is up.
    monkeypatch.setattr(train, "Stop", lambda seconds: stop(seconds, Timed(1)))
    paced = {"train__steps": 6, "train__steps_per_call": 3, "train__log_every": 6, "train__checkpoint_every": 6}
    assert in_process(tmp_path, train__max_seconds=60.0, **paced) == 75
    assert process.checkpoints(tmp_path) == [1]
    assert in_process(tmp_path, **paced) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.long
def test_a_clock_that_jumps_changes_nothing(whole, tiny_data, tmp_path, monkeypatch):
    rng, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + rng.uniform(-1, 1) * 86_400)
    in_process(tmp_path / "jumping", train__steps=4)
    in_process(tmp_path / "jumping", train__steps=6)
    assert_same_run(tmp_path / "jumping", whole)
    rows = [json.loads(line) for line in (tmp_path / "jumping" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(0 < row["images_per_s"] < 1e6 for row in rows)


@pytest.mark.medium
def test_a_second_trainer_is_refused_and_touches_nothing(tiny_data, tmp_path, capfd):
    in_process(tmp_path, train__steps=2)
    with only_trainer(tmp_path):
        before = tiny.snapshot(tmp_path)
        done = tiny.run_main(capfd, *tiny.flags(train__steps=4), "--workdir", tmp_path)
        assert tiny.snapshot(tmp_path) == before
    assert done.code == 2
    assert len(done.err) == 1
    assert "another training run is using it (process" in done.err[0]


@pytest.mark.long
def test_a_learning_rate_that_blows_up_ends_in_one_line_with_finite_checkpoints(tiny_data, tmp_path, capfd, caplog):
    settings = {"optimizer__learning_rate": 1e25, "train__steps": 60, "train__checkpoint_every": 1}
    done = tiny.run_main(capfd, *tiny.flags(**settings), "--workdir", tmp_path)
    assert done.code == 2
    errors = [line for line in done.err if line.startswith("error: ")]
    assert len(errors) == 1
    assert "10 steps in a row had a loss or gradient that is not finite" in errors[0]
    assert "lower optimizer.learning_rate" in errors[0]
    assert "steps skipped because the loss or gradient was not finite: 2 up to step" in caplog.text
    assert not any("Traceback" in line for line in done.err)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(process.final_state(tmp_path)))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["bad_steps"] == 2
    assert rows[-1]["loss"] is None


@pytest.mark.long
@pytest.mark.parametrize("section", ["autoencoder", "classifier"])
def test_a_network_beside_the_run_that_blows_up_is_told_of_its_own_key(section, tiny_data, tmp_path, capfd, caplog):
    settings = {f"{section}__learning_rate": 1e25, f"{section}__steps": 60, "train__checkpoint_every": 1}
    done = tiny.run_main(capfd, *tiny.flags(**settings), "--workdir", tmp_path, f"--mode=train_{section}")
    assert done.code == 2
    assert f": lower {section}.learning_rate" in done.err[-1]
    told = f"{caplog.text} {done.err[-1]}"
    assert ("with noise of quarter" in told) == (section == "classifier")
    assert "optimizer.learning_rate" not in told


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


@pytest.mark.long
def test_a_disk_that_is_full_is_one_line_and_the_older_checkpoint_stays(place, tmp_path):
    """A limit on file sizes stands in for a full disk; metrics.jsonl and the event files stay below it here."""
    settings = ["train.checkpoint_every=4", "train.log_every=4", "train.steps=4"]
    code, told = process.finish(process.start(place[0], tmp_path, place[1], *settings))
    assert code == 0, told
    settings[-1] = "train.steps=40"
    code, told = process.finish(process.start(place[0], tmp_path, place[1], *settings, preexec_fn=limit_files))
    assert code == 2, told
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot be written (File too large): fix that, and the same command resumes" in errors[0]
    assert not any("Traceback" in line for line in told), told
    assert process.checkpoints(tmp_path) == [4]


def test_a_folder_that_may_not_be_written_is_one_line(tiny_data, tmp_path, capfd, monkeypatch):
    """Root may write anywhere, so `os.open` is patched: it refuses the first file to be created."""

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path)
    monkeypatch.undo()
    assert (done.code, done.err) == (
        2,
        [f"error: --workdir={tmp_path} cannot be written to (Permission denied); use a folder that you can write to"],
    )


def test_ctrl_c_before_the_first_step_is_one_line(tiny_data, tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Experiment, "init_state", interrupted)
    done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path)
    assert done.code == 130
    assert done.err[-1] == "interrupted"
    assert process.checkpoints(tmp_path) == []
    with only_trainer(tmp_path):
        pass


@pytest.mark.medium
def test_none_whole_is_told_by_the_command(tiny_data, tmp_path, capfd):
    in_process(tmp_path, train__steps=4)
    for sums in tmp_path.glob("checkpoints/*/SHA256SUMS"):
        sums.unlink()
    for flags in (tiny.flags(train__steps=6), ["--mode=sample"]):
        done = tiny.run_main(capfd, *flags, "--workdir", tmp_path)
        assert done.code == 2
        assert "error: none of the checkpoints [4, 2] in" in done.err[-1]
    with pytest.raises(UserError, match="none of the checkpoints"):
        in_process(tmp_path, train__steps=6)


def test_a_link_that_broke_is_told_as_a_lost_process():
    """The message is Gloo's after its peer was killed; 134 is what a shell reports when JAX aborts a process."""
    reason = (
        "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:54921: "
        "Connection reset by peer"
    )
    for kind in (jax.errors.JaxRuntimeError, ValueError):  # the second, if it fails at once
        code, line = explain(kind(reason))
        assert code == 134
        assert str(line).startswith("another process of this run was lost (UNKNOWN: Gloo all-reduce failed")
    assert explain(jax.errors.JaxRuntimeError("INTERNAL: something else")) == (1, None)
