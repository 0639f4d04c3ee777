"""The trials of variants, at toy size on a CPU."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import contestant, trials
from dit_jax.errors import UserError
from tests import tiny

BOTH = ("as it is", "norms in two kernels")
TOY = [
    "model.depth=1",
    "model.width=32",
    "model.patch_size=8",
    "train.batch_size=2",
    "train.steps_per_call=2",
    "model.dtype=float32",
]
WORDS = [*(f"--config.{setting}" for setting in TOY), f"--variants={','.join(BOTH)}", "--repeats=3", "--seconds=0.01"]


@pytest.fixture
def small(monkeypatch):
    """One device, and 64 images instead of 50,000."""
    tiny.on_devices(monkeypatch, 1)
    monkeypatch.setattr(contestant, "NUM_IMAGES", 64)


@pytest.mark.long
def test_both_compute_the_same_steps_and_their_rates_are_written(small, monkeypatch, tmp_path, capsys):
    """Two different programs have the same loss in the first two steps: the patch took effect in the second."""
    losses, programs, real = [], [], trials.runner

    def runner(program, held, data, a_call):
        assert a_call == 2
        run = real(program, held, data, a_call)
        run(2)
        losses.append(float(held[1]["loss"]) / float(held[1]["steps"]))
        programs.append(program.as_text())
        return run

    monkeypatch.setattr(trials, "runner", runner)
    made = trials.main([*WORDS, f"--out={tmp_path / 'trials.json'}"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert programs[0] != programs[1]
    found = json.loads((tmp_path / "trials.json").read_text())
    assert found == made
    assert (found["batch"], found["assignments"]) == (2, TOY)
    assert list(found["variants"]) == list(BOTH)
    for one in found["variants"].values():
        rates = one["images_per_s"]
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert one["kernels"] == []
        assert one["loss"] == pytest.approx(made["variants"][BOTH[0]]["loss"], rel=1e-4)  # of ten steps
    printed = capsys.readouterr().out.splitlines()
    assert [text.partition(": ")[0] for text in printed] == list(BOTH)
    assert all("images/s" in text for text in printed)


def test_a_variant_that_is_none():
    with pytest.raises(UserError, match="'faster' is none of as it is, attention in one kernel, "):
        trials.main(["--variants=as it is,faster"])


def test_a_variant_that_does_not_compile_is_told_and_the_other_timed(small, monkeypatch, tmp_path, capsys):
    """Each step of a program takes a millisecond here. What cannot be traced or run is reported in the same way."""
    fail, told = [], "RuntimeError: INTERNAL: no such kernel"

    def failing(where, result):
        def job(*_):
            if fail == [where]:
                raise RuntimeError("INTERNAL: no such kernel\nand where")
            return result

        return job

    def lower(config, assignments, variant, data):
        mine = variant.patch == "two_kernels"
        program = failing("run", None) if mine else lambda *_: None
        lowered = SimpleNamespace(compile=failing("compile", program) if mine else lambda: program)
        held = [None, {"loss": np.float32(3), "steps": np.float32(2)}]
        return (failing("lower", lowered) if mine else lambda: lowered)(), held, data, 2

    def runner(program, *_):
        return lambda steps: (program(), time.sleep(steps / 1000))

    monkeypatch.setattr(trials, "lower", lower)
    monkeypatch.setattr(trials, "runner", runner)
    for where in ("lower", "compile", "run"):
        fail[:] = [where]
        trials.main([*WORDS, f"--out={tmp_path / 'trials.json'}"])
        found = json.loads((tmp_path / "trials.json").read_text())["variants"]
        assert 0 < found[BOTH[0]]["images_per_s"]["median"] < 2000  # two images a step
        assert found[BOTH[0]]["loss"] == 1.5
        assert found[BOTH[1]] == {"error": told}
        assert f"{BOTH[1]}: {told}" in capsys.readouterr().out.splitlines()
    with pytest.raises(UserError, match="no variant could be measured, see above"):
        trials.main([*WORDS, f"--variants={BOTH[1]}"])


@pytest.mark.parametrize("flag", ["--repeats=0", "--seconds=0"])
def test_no_timing_is_no_measurement(flag):
    with pytest.raises(UserError, match="use numbers above 0"):
        trials.main([flag])


def test_trials_are_of_pixels():
    with pytest.raises(UserError, match=r"model\.latents=True: trials are of pixels"):
        trials.main(["--config.model.latents=true", "--config.sample.clip_x_0=false"])


def test_timings_take_turns(monkeypatch):
    """A step of A takes 1 s and one of B 2 s, so a timing of about 48 s is of 48 and of 24 steps."""
    now, runs = [0.0], []

    def fake(name, seconds):
        def run(steps):
            runs.append((name, steps))
            now[0] += steps * seconds

        return run

    monkeypatch.setattr(trials.time, "perf_counter", lambda: now[0])
    taken = trials.in_turns({"A": fake("A", 1.0), "B": fake("B", 2.0)}, seconds=48.0, repeats=2)
    assert runs == [("A", 8), ("B", 8), *[("A", 48), ("B", 24)] * 2]
    assert taken == {"A": [1.0, 1.0], "B": [2.0, 2.0]}


def test_a_cpu_has_no_kernels_to_tell():
    assert trials.kernels(None, lambda steps: pytest.fail("it was run"), "float32") == []
