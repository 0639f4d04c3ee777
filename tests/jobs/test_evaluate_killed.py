"""A real SIGKILL in the middle of an evaluation: what was drawn stays, and no figure changes."""

import json
import shutil
import signal

import pytest

from dit_jax.data import shapes
from tests import process

SETTINGS = ["train.steps=2", "train.batch_size=8", "train.log_every=2", "classifier.steps=2", "classifier.batch_size=8",
            "classifier.width=8", "sample.batch_size=100", "sample.steps=10", "evaluate.n=3000",
            "evaluate.loss_n=10"]  # fmt: skip


@pytest.mark.slow
def test_killed_in_an_evaluation_what_was_drawn_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_EXAMPLES", {"train": 64, "test": 20})
    data, cache, workdir, other = (tmp_path / name for name in ("data", "cache", "killed", "whole"))
    shapes.prepare(data)
    for mode in ("train", "train_classifier"):
        code, told = process.finish(process.start(data, workdir, cache, *SETTINGS, flags=[f"--mode={mode}"]))
        assert code == 0, told
    shutil.copytree(workdir, other)
    evaluation = process.start(data, workdir, cache, *SETTINGS, flags=["--mode=evaluate"])
    process.wait_for(lambda: any(workdir.glob("evaluation/*/*.npz")), evaluation)
    process.kill(evaluation)
    assert evaluation.returncode == -signal.SIGKILL, "it was over before its kill: give it more images"
    drawn = {path: path.stat().st_mtime_ns for path in workdir.glob("evaluation/*/*.npz")}
    assert 1 <= len(drawn) < 3
    assert not (workdir / "evaluation.json").exists()
    for folder in (workdir, other):
        code, told = process.finish(process.start(data, folder, cache, *SETTINGS, flags=["--mode=evaluate"]))
        assert code == 0, told
    assert drawn.items() <= {path: path.stat().st_mtime_ns for path in workdir.glob("evaluation/*/*.npz")}.items()
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in (workdir, other)]
    assert all(result.pop("seconds") > 0 for result in results)
    assert results[0] == results[1]
