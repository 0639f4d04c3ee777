"""The GPU agenda: the jobs that it would run fit the present code, and a call resumes where the last one stopped."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import agenda, commands
from benchmarks.pilots import PILOTS
from benchmarks.variants import PATCHES, VARIANTS, Variant
from dit_jax.errors import UserError


@pytest.fixture
def call(tmp_path):
    for name in ("state", "out"):
        (tmp_path / name).mkdir()
    return agenda.Call(tmp_path / "state", tmp_path / "out", time.monotonic() + 500, dry=False)


def test_every_variant_and_every_pilot_is_a_config_that_builds():
    for variant in VARIANTS.values():
        commands.experiment("configs/cifar10.py:report", variant.assignments)
    assert {variant.patch for variant in VARIANTS.values()} == set(PATCHES) - {
        "xla_attention"
    }  # measured: cuDNN's is faster
    assert VARIANTS["as it is"] == Variant()
    assert len(set(VARIANTS.values())) == len(VARIANTS)
    assert not [name for name in VARIANTS if "," in name]  # it separates names on the command line
    toys = [commands.experiment("configs/cifar10.py:best", [*agenda.TOY, *changes]) for changes in PILOTS.values()]
    real = [commands.experiment("configs/cifar10.py:best", ["model.patch_size=4", *c]) for c in PILOTS.values()]
    assert len({made.config.to_json() for made in real}) == len(toys) == len(PILOTS)


def test_a_call_that_runs_out_of_time_is_not_done_and_another_failure_is_told(call, monkeypatch):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words) or SimpleNamespace(returncode=75))
    assert call.main(call.state / "run", "--config=x", assignments=["seed=3"], reserve=30.0) == agenda.AGAIN
    assert "--config.seed=3" in asked[0]
    limit = float(asked[0][-1].removeprefix("--config.train.max_seconds="))
    assert 450 <= limit <= 460  # 500, less 30 in reserve and 10 to save
    monkeypatch.setattr(subprocess, "run", lambda words, **_: SimpleNamespace(returncode=2))
    with pytest.raises(UserError, match="ended with code 2, see above"):
        call.main(call.state / "run", "--mode=sample")


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(("module", "words"), [job[1:] for job in agenda.SPEEDS], ids=[job[0] for job in agenda.SPEEDS])
def test_every_speed_is_a_config_that_builds(module, words, dry):
    """In a rehearsal, the last of two arguments for the same setting counts."""
    parser = commands.parser("")
    parser.add_argument("--variants", default="")
    flags, assignments = commands.split(parser, [*words, *(agenda.SMALLER[module] if dry else [])])
    assert set(flags.variants.split(",")) <= {"", *VARIANTS}
    made = commands.experiment(flags.config, assignments)
    if module == "benchmarks.trials":
        assert (made.config.train.batch_size <= 2) == dry
    else:
        commands.parse(parser, words)  # refuses unknown peers
        assert all((batch <= 2) == dry for _, batch in commands.cells(flags))


def test_every_speed_has_a_file_and_every_module_a_small_size():
    assert len({name for name, *_ in agenda.SPEEDS}) == len(agenda.SPEEDS)
    assert {module for _, module, _ in agenda.SPEEDS} == set(agenda.SMALLER)


NAMES = [name for name, *_ in agenda.SPEEDS]


@pytest.fixture
def ran(call, monkeypatch, tmp_path):
    """Records the names, commands and time limits of point b's jobs, which write their names instead of running.

    A job in `ran.broken` fails with that error, and each job takes `ran.takes` seconds of the call.
    """
    monkeypatch.chdir(tmp_path)  # where there is no carry/
    found = SimpleNamespace(names=[], commands=[], limits=[], broken={}, takes=0)

    def run(words, check, timeout):
        assert check
        found.limits.append(timeout)
        (out,) = (Path(word.removeprefix("--out=")) for word in words if word.startswith("--out="))
        found.names.append(out.name.removesuffix(".partial.json"))
        found.commands.append(words)
        object.__setattr__(call, "end", call.end - found.takes)
        if found.names[-1] in found.broken:
            raise found.broken[found.names[-1]]
        out.write_text(found.names[-1])

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_every_speed_is_measured_once_and_in_order(call, ran):
    assert agenda.speed(call) == agenda.speed(call) == 0
    assert ran.names == NAMES
    for (_, module, words), command in zip(agenda.SPEEDS, ran.commands, strict=True):
        assert command[:3] == [sys.executable, "-m", module]
        assert command[4:] == words
    for folder in (call.out, call.state):
        assert {path.name: path.read_text() for path in folder.glob("*.json")} == {
            f"{name}.json": name for name in NAMES
        }
    assert all(480 < limit <= 500 for limit in ran.limits)  # the time left of the call


def test_the_speeds_go_on_where_a_call_stopped(call, ran):
    """Each job takes 150 of a call's 500 seconds; with less than 170 left, none is begun."""
    ran.takes = 150
    for done in range(3, len(NAMES), 3):
        assert agenda.speed(call) == agenda.AGAIN
        assert ran.names == NAMES[:done]
        assert {path.stem for path in call.out.iterdir()} == set(NAMES[:done])
        object.__setattr__(call, "end", time.monotonic() + 500)
    assert agenda.speed(call) == 0
    assert ran.names == NAMES


def test_a_speed_that_was_brought_back_is_not_measured_again(call, ran):
    """Not even in a call that has no time left for another one."""
    Path("carry").mkdir()
    for name in NAMES[:2]:
        (Path("carry") / f"{name}.json").write_text("carried")
    late = dataclasses.replace(call, end=time.monotonic())
    assert agenda.speed(late) == agenda.AGAIN
    assert not ran.names
    assert [(call.out / f"{name}.json").read_text() for name in NAMES[:2]] == ["carried"] * 2
    assert agenda.speed(call) == 0
    assert ran.names == NAMES[2:]


def test_a_speed_that_cannot_be_measured_is_named_after_the_others_and_tried_again(call, ran):
    """One fails, the other exceeds its time limit. Jobs that were begun before go last."""
    ran.broken = {
        NAMES[0]: subprocess.CalledProcessError(2, "trials"),
        NAMES[3]: subprocess.TimeoutExpired("train", 9.0),
    }
    with pytest.raises(UserError, match=f"^{NAMES[0]} and {NAMES[3]} could not be measured, see above$"):
        agenda.speed(call)
    assert ran.names == NAMES
    assert {path.stem for path in call.out.iterdir()} == set(NAMES) - set(ran.broken)
    ran.broken = {}
    (call.state / f"{NAMES[2]}.json").unlink()
    (call.state / f"{NAMES[2]}.begun").unlink()
    assert agenda.speed(call) == 0
    assert ran.names[len(NAMES) :] == [NAMES[2], NAMES[0], NAMES[3]]
    assert {path.stem for path in call.out.iterdir()} == set(NAMES)


def test_a_rehearsal_measures_a_job_of_each_module_at_toy_size(call, ran):
    """What was carried does not count, as it was measured on a GPU."""
    Path("carry").mkdir()
    (Path("carry") / f"{NAMES[0]}.json").write_text("carried")
    assert agenda.speed(dataclasses.replace(call, dry=True)) == 0
    assert {command[2] for command in ran.commands} == set(agenda.SMALLER)
    assert len(ran.commands) == len(agenda.SMALLER)
    for command in ran.commands:
        assert command[-len(agenda.SMALLER[command[2]]) :] == agenda.SMALLER[command[2]]
        assert "--config.model.width=32" in command


def test_a_rehearsal_does_everything_however_little_time_is_left(call):
    late = dataclasses.replace(call, end=time.monotonic() - 1)
    assert late.short_of(30)
    assert not dataclasses.replace(late, dry=True).short_of(30)


def test_the_row_that_is_found_is_the_newest_of_its_step_and_settings(tmp_path):
    rows = [dict(step=1, n=5, fd=1), dict(step=2, n=5, fd=2), dict(step=2, n=6, fd=3), dict(step=2, n=5, fd=4)]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [agenda.judged(tmp_path, step, n=5)["fd"] for step in (1, 2)] == [1, 4]
    assert agenda.judged(tmp_path, 3) is agenda.judged(tmp_path, 1, n=6) is agenda.judged(tmp_path / "none", 1) is None


def append_row(run, **row):
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def asked(call, monkeypatch):
    """The calls of main.py by points c and e, as (workdir's name, mode, settings); nothing is trained or finished."""
    for folder in ("data/cifar10/3.0.2", "best/classifier", "report"):
        (call.state / folder).mkdir(parents=True)
    (call.state / "data/cifar10/3.0.2/dataset_info.json").touch()
    made = []

    def main(self, workdir, *words, assignments=(), reserve=0.0):
        mode = next((word.removeprefix("--mode=") for word in words if word.startswith("--mode=")), "train")
        made.append((workdir.name, mode, dict(assignment.split("=", 1) for assignment in assignments)))
        return 0

    monkeypatch.setattr(agenda.Call, "main", main)
    monkeypatch.setattr(agenda, "train_judge", lambda call: 0)
    monkeypatch.setattr(agenda, "finish", lambda *_: 0)
    monkeypatch.setattr(agenda.results, "last_step", lambda run: 7)
    return made


def test_the_reports_epochs_are_judged_once_each(call, asked, monkeypatch):
    """50,000 images have floor(50,000 / 256) = 195 whole batches of 256."""
    monkeypatch.setattr(agenda, "judge", lambda call, run, step, n: append_row(run, step=step, n=n))
    assert agenda.report(call) == agenda.report(call) == 0
    trained = [int(settings["train.steps"]) for _, mode, settings in asked if mode == "train"]
    assert trained == [195 * epoch for epoch in (40, 80, 120, 160, 200)]


def test_the_best_guidance_is_that_of_the_least_distance_and_none_is_measured_twice(call, asked, monkeypatch):
    """The distance is smallest at 1.6, to which 1.5 is nearest: only with 1.5 are 50,000 images drawn."""
    main, finished = agenda.Call.main, []

    def evaluating(self, workdir, *words, assignments=(), reserve=0.0):
        main(self, workdir, *words, assignments=assignments)
        _, mode, settings = asked[-1]
        if mode == "evaluate":
            guidance, n = float(settings["sample.guidance"]), int(settings["evaluate.n"])
            append_row(workdir, step=7, n=n, guidance=guidance, fd_classifier=abs(guidance - 1.6))
        return 0

    monkeypatch.setattr(agenda.Call, "main", evaluating)
    monkeypatch.setattr(agenda, "finish", lambda call, run, name, recipe, *settings: finished.append(settings) or 0)
    assert agenda.best(call) == agenda.best(call) == 0
    drawn = [(float(c["sample.guidance"]), int(c["evaluate.n"])) for _, mode, c in asked if mode == "evaluate"]
    assert drawn == [*((scale, 5_000) for scale in (1, 1.25, 1.5, 2, 3)), (1.5, 50_000)]
    assert finished == [("sample.guidance=1.5",)] * 2


def test_data_that_was_not_carried_is_named(call):
    with pytest.raises(UserError, match="carry both halves, one per call"):
        agenda.report(call)


def test_a_point_that_is_none():
    done = subprocess.run(["bash", "benchmarks/gpu.sh", "f"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: there is no point 'f'; choose a, b, c, d or e\n")
