"""The comparison: its arithmetic by hand, with contestants whose speed is known; and its command line."""

import json
import subprocess
import sys

import pytest

from benchmarks import commands, contest, machine, sample, train
from benchmarks.contest import Contestant
from dit_jax.errors import UserError


class Fixed:
    """A contestant that takes 0.1 s per unit, and 0.5 s more the first time; it records what it was asked for."""

    def __init__(self, multiple=1, told=None, log=None, name="one"):
        self.contestant = Contestant(name, "", {}, multiple=multiple)
        self.told = told or {}
        self.asked = [] if log is None else log

    def run(self, units):
        first = not self.asked
        self.asked.append((self.contestant.name, units))
        return {"seconds": 0.1 * units + 0.5 * first, "peak_bytes": 5}


def test_a_timing_lasts_as_long_as_asked_and_the_warm_up_is_not_in_it():
    assert contest.units_for(Fixed(), seconds=3.0) == 30
    assert contest.units_for(Fixed(multiple=8), seconds=3.0) == 32  # 0.8 s per dispatch: four of them
    assert contest.units_for(Fixed(multiple=8), seconds=0.01) == 8


def test_a_row_by_hand():
    """4 steps of 10 images in 2, 4 and 8 s: 20, 10 and 5 images/s; 3 GFLOP per image at a peak of 100 GFLOP/s."""
    answers = [{"seconds": s, "peak_bytes": b} for s, b in ((2.0, 7), (8.0, 9), (4.0, 8))]
    row = contest.row_of(Fixed(told={"version": "1"}), 4, answers, images=10, flops=3e9, peak=100e9)
    assert row["images_per_s"] == {"median": 10.0, "min": 5.0, "max": 20.0}
    assert row["step_ms"] == {"median": 1000.0, "min": 500.0, "max": 2000.0}
    assert row["flops"] == pytest.approx(30e9)
    assert row["mfu"] == pytest.approx(0.3)
    assert row["peak_bytes"] == 9
    assert row["version"] == "1"


def test_contestants_take_turns_and_the_peak_is_the_best_that_any_saw(monkeypatch):
    log = []
    ours = Fixed(told={"matmul_flops": 3.0, "compile_s": 1, "start_s": 1}, log=log, name=contest.OURS)
    peer = Fixed(told={"matmul_flops": 4.0, "compile_s": 2, "start_s": 1}, log=log, name="peer")
    peer.run = lambda units: log.append(("peer", units)) or {"seconds": 0.2 * units, "peak_bytes": 1}

    class Running:
        def __init__(self, contestants):
            self.processes = [ours, peer][: len(contestants)]

        def __enter__(self):
            return self.processes

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(contest, "running", Running)
    timed = contest.apart([ours.contestant], repeats=3, seconds=1.0)
    assert [(one.units, len(one.answers)) for one in timed] == [(10, 3)]
    assert log[-2:] == [(contest.OURS, 1), (contest.OURS, 10)]  # warmed up again
    found = contest.compare([ours.contestant, peer.contestant], 10, 100, repeats=2, seconds=1.0)
    assert log[-4:] == [(contest.OURS, 10), ("peer", 5), (contest.OURS, 10), ("peer", 5)]
    assert found["matmul_peak_flops"] == 4.0
    assert found["rows"][1]["ours_over_this"] == pytest.approx(2.0)
    lines = contest.table(found["rows"]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split("|")[-2].strip() == "2.00"


def test_a_contestant_that_dies_is_left_out_and_ours_is_not(capfd):
    dead = Contestant("peer", "benchmarks.ours", {})
    with contest.running([dead]) as processes:
        assert processes == []
    assert "left out: peer ended with code 1" in capfd.readouterr().err
    with (
        pytest.raises(UserError, match="dit-jax ended with code 1"),
        contest.running([Contestant(contest.OURS, "none", {})]),
    ):
        pass


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--bach=3"], "--bach=3 is not an argument"),
        (["--config.model.depht=3"], "did you mean --config.model.depth"),
        (["--batch=many"], "whole numbers"),
        (["--peers=jax"], "use any of torch, torch-compile"),
        (["--dtype=half"], "model.dtype=half"),
        (["--repeats=0"], "numbers above 0"),
    ],
)
def test_a_wrong_argument_is_one_line(argv, told):
    with pytest.raises(UserError, match=told):
        train.main(argv)


def test_peers_need_their_packages_and_their_network(monkeypatch, capfd):
    monkeypatch.setattr(contest, "installed", lambda *names: "diffusers" not in names)
    made = commands.experiment("configs/cifar10.py:report", [])
    names = [c.name for c in commands.contestants("train", made, "", [], "torch,diffusers")]
    assert names == [contest.OURS, "torch"]
    assert "diffusers needs torch and diffusers (requirements-peers.txt)" in capfd.readouterr().err
    for other in ("model.conditioning=adaln_zero", "model.qk_norm=True", "model.long_skips=True", "train.dropout=0.1"):
        made = commands.experiment("configs/cifar10.py:report", [other])
        assert [c.name for c in commands.contestants("train", made, "", [], "torch")] == [contest.OURS]
        key, _, value = other.partition("=")
        assert f"they have {key}={commands.THEIRS[key]}, ours is {value}" in capfd.readouterr().err


def test_sampling_is_compared_only_where_both_do_the_same_work(monkeypatch, capfd):
    monkeypatch.setattr(contest, "installed", lambda *names: True)
    made = commands.experiment("configs/cifar10.py:report", ["sample.sampler=heun", "sample.steps=10"])
    assert [c.name for c in commands.contestants("sample", made, "", [], "torch")] == [contest.OURS]
    assert "they have sample.sampler=ddim, ours is heun" in capfd.readouterr().err
    assert [c.name for c in commands.contestants("train", made, "", [], "torch")] == [contest.OURS, "torch"]
    work = {}
    for guidance in (0.0, 1.0, 2.0):  # no class, the class, both
        made = commands.experiment("configs/cifar10.py:report", ["sample.steps=10", f"sample.guidance={guidance}"])
        work[guidance] = sample.count(made)
    assert work[2.0] == 2 * work[1.0] == 2 * work[0.0]
    made = commands.experiment("configs/cifar10.py:report", ["sample.guidance_to=0.5"])
    with pytest.raises(UserError, match=r"sample\.guidance_to=0\.5: its cost is not counted here; use 1\.0"):
        sample.count(made)


def test_on_a_gpu_ours_leaves_memory_to_its_peers(monkeypatch):
    monkeypatch.setattr(commands.machine, "gpus", lambda: ["one"])
    made = commands.experiment("configs/cifar10.py:report", [])
    alone, beside = (commands.contestants("train", made, "", [], peers)[0].env for peers in ("", "torch"))
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in alone
    assert beside["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.4"


def test_ours_asks_for_huge_pages_as_main_does(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(commands.huge_pages, "on_request", lambda: True)
    made = commands.experiment("configs/cifar10.py:report", [])
    assert commands.contestants("train", made, "", [], "")[0].env == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train", "sample"])
def test_the_whole_command(module, tmp_path):
    out = tmp_path / "speed.json"
    flags = ["--batch=2", "--dtype=float32", "--repeats=2", "--seconds=0.1", "--peers=", f"--out={out}"]
    small = ["--config.model.depth=1", "--config.model.width=32", "--config.train.steps_per_call=2"]
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *flags, *small], check=True)
    (cell,) = json.loads(out.read_text())["cells"]
    (row,) = cell["rows"]
    assert 0 < row["mfu"] < 1
    assert row["images_per_s"]["min"] <= row["images_per_s"]["median"] <= row["images_per_s"]["max"]
    assert row["compile_cold_s"] > 0
    assert row["peak_bytes"] > 1e8


@pytest.mark.parametrize(
    ("seen", "cards", "count", "told"),
    [(None, 4, 1, "0"), (None, 4, 2, "0,1"), ("2,3", 4, 1, "2"), ("", 4, 1, None), (None, 0, 1, None)],
)
def test_all_contestants_have_the_same_cards(seen, cards, count, told, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ["card"] * cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert machine.only_cards(count) == ({} if told is None else {"CUDA_VISIBLE_DEVICES": told})
    made = commands.experiment("configs/cifar10.py:report", [])
    ours, *_ = commands.contestants("train", made, "configs/cifar10.py:report", [], peers="")
    assert machine.only_cards(9) == ({} if told is None else {"CUDA_VISIBLE_DEVICES": seen or "0,1,2,3"})
    assert ours.env.get("CUDA_VISIBLE_DEVICES") == (None if told is None else told.split(",")[0])
