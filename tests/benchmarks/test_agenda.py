"""The GPU agenda: what it would run fits the code as it is, and a call goes on where the last one stopped."""

import json
import subprocess
import time
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
    with pytest.raises(UserError, match="ended with 2, see above"):
        call.main(call.state / "run", "--mode=sample")


def test_the_speed_table_goes_on_where_it_stopped(call, monkeypatch):
    """A call with time for two variants, then one with time for all; no variant is timed twice."""
    timed = []

    def timing(one, patch, batch, variant):
        timed.append((patch, variant))
        object.__setattr__(call, "end", call.end - 300)
        return {"gain": 1.0}

    monkeypatch.setattr(agenda, "timed", timing)
    monkeypatch.setattr(agenda.train, "main", lambda argv: None)
    assert agenda.speed(call) == agenda.AGAIN
    assert len(timed) == 2
    monkeypatch.setattr(agenda, "timed", lambda *_: timed.append(_[1:]) or {"gain": 1.0})
    object.__setattr__(call, "end", time.monotonic() + 100)  # enough for variants, too little for the peers
    assert agenda.speed(call) == agenda.AGAIN
    assert len(timed) == 2 * len(VARIANTS)
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
        assert set(json.loads((call.out / "speed.json").read_text())) == {f"patch 2: {first}"}
    (call.out / "speed.json").rename(tmp_path / "carry" / "speed.json")
    (call.state / "speed.json").unlink()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    timed = []
    monkeypatch.setattr(agenda, "timed", lambda *given: timed.append(given[1:]) or {"gain": 1.0})
    monkeypatch.setattr(agenda.train, "main", lambda argv: None)
    object.__setattr__(call, "end", time.monotonic() + 100)
    assert agenda.speed(call) == agenda.AGAIN
    assert (2, 512, VARIANTS[first]) not in timed
    assert len(timed) == 2 * len(VARIANTS) - 1


def test_data_that_was_not_carried_is_named(call):
    with pytest.raises(UserError, match="carry both halves, one a call"):
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
    found = agenda.timed(call, 4, 512, VARIANTS["attention cudnn"])
    assert found == {"error": "it could not run, see log.txt"}
