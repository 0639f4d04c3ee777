"""The GPU agenda: what it would run fits the code as it is, and a call goes on where the last one stopped."""

import contextlib
import dataclasses
import json
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import agenda, commands, contest
from benchmarks.pilots import PILOTS
from benchmarks.variants import PATCHES, VARIANTS
from dit_jax.errors import UserError


@pytest.fixture
def call(tmp_path):
    for name in ("state", "out"):
        (tmp_path / name).mkdir()
    return agenda.Call(tmp_path / "state", tmp_path / "out", time.monotonic() + 500, dry=False)


def test_every_variant_and_every_pilot_is_a_config_that_builds():
    for variant in VARIANTS.values():
        commands.experiment("configs/cifar10.py:report", variant.assignments)
        assert variant.patch in PATCHES
        assert variant.assignments or variant.env or variant.patch
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


def test_the_speed_table_goes_on_where_it_stopped(call, monkeypatch):
    """A call with time for one variant, then one with time for all; none is timed twice, and peers soon have a turn."""
    timed = []

    def timing(one, base, variant):
        timed.append((base, variant))
        object.__setattr__(call, "end", call.end - 350)
        return {"gain": 1.0}

    monkeypatch.setattr(agenda, "timed", timing)
    assert agenda.speed(call) == agenda.AGAIN
    assert len(timed) == 1
    monkeypatch.setattr(agenda, "timed", lambda *given: timed.append(given[1:]) or {"gain": 1.0})
    monkeypatch.setattr(agenda.train, "main", partial(peers, timed))
    monkeypatch.setattr(agenda.sampling, "main", partial(peers, timed))
    object.__setattr__(call, "end", time.monotonic() + 500)
    assert agenda.speed(call) == 0
    assert len(timed) == len({(base, id(variant)) for base, variant in timed}) == 3 * len(VARIANTS) + 2
    first = next(iter(VARIANTS.values()))
    assert [job[0] for job in timed[:5]] == ["best", "train", "report, patch 4", "sample", "report, patch 2"]
    assert timed[2][1] is timed[4][1] is first
    assert (call.out / "speed.json").exists()


def test_a_variant_that_never_ends_is_begun_twice_and_not_again_on_another_machine(call, monkeypatch, tmp_path):
    """Once it may be the call that ended. What a killed call leaves in $OUT is carried to the next machine."""
    (tmp_path / "carry").mkdir()
    first = next(iter(VARIANTS))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(agenda, "timed", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            agenda.speed(call)
        assert set(json.loads((call.out / "speed.json").read_text())) == {f"best: {first}"}
    (call.out / "speed.json").rename(tmp_path / "carry" / "speed.json")
    (call.state / "speed.json").unlink()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    timed = []
    monkeypatch.setattr(agenda, "timed", lambda *given: timed.append(given[1:]) or {"gain": 1.0})
    monkeypatch.setattr(agenda.train, "main", partial(peers, []))
    monkeypatch.setattr(agenda.sampling, "main", partial(peers, []))
    assert agenda.speed(call) == 0
    assert ("best", VARIANTS[first]) not in timed
    assert len(timed) == 3 * len(VARIANTS) - 1


def peers(timed, argv):
    """Stands for `benchmarks.train` and `benchmarks.sample`."""
    (out,) = (Path(word.removeprefix("--out=")) for word in argv if word.startswith("--out="))
    timed.append((out.name.removeprefix("peers_").partition(".")[0], None))
    out.touch()


def test_the_peers_are_timed_once(call, monkeypatch):
    timed = []
    monkeypatch.setattr(agenda, "timed", lambda *_: {"gain": 1.0})
    monkeypatch.setattr(agenda.train, "main", partial(peers, timed))
    monkeypatch.setattr(agenda.sampling, "main", partial(peers, timed))
    assert agenda.speed(call) == agenda.speed(call) == 0
    assert len(timed) == 2
    assert {path.name for path in call.out.iterdir()} == {"speed.json", "peers_train.json", "peers_sample.json"}


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
    """The calls of main.py, as (workdir's name, mode, settings), of points c and e; nothing is trained or finished."""
    for folder in ("data/cifar10", "best/classifier", "report"):
        (call.state / folder).mkdir(parents=True)
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
    """The distance is the least at 1.6, to which 1.5 is the nearest: it alone is drawn 50,000 times."""
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


def test_a_variant_that_cannot_run_is_told_and_does_not_end_the_table(call, monkeypatch):
    class Running:
        def __init__(self, contestants):
            assert [one.name for one in contestants] == [contest.OURS, "variant"]
            assert contestants[1].spec["patch"] == "cudnn"

        def __enter__(self):
            return ["ours alone"]

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(contest, "running", Running)
    found = agenda.timed(call, "best", VARIANTS["attention cudnn"])
    assert found == {"error": "it could not run, see log.txt"}


def test_a_variant_twice_as_fast_has_a_gain_of_two(call, monkeypatch):
    """A batch of 512 in one second and in half a second."""

    @contextlib.contextmanager
    def running(both):
        seconds = {contest.OURS: 1.0, "variant": 0.5}
        yield [SimpleNamespace(run=lambda count, one=one: {"seconds": count * seconds[one.name]}) for one in both]

    monkeypatch.setattr(contest, "running", running)
    monkeypatch.setattr(contest, "units_for", lambda process, wanted: 1)
    found = agenda.timed(call, "report, patch 4", VARIANTS["attention cudnn"])
    assert (found["as_it_is"]["median"], found["variant"]["median"], found["gain"]) == (512, 1024, 2)
