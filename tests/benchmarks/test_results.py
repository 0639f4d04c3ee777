"""The files of results/, which are made from a run, and the README's table, which is made from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import readme, results
from dit_jax.errors import UserError
from tests import tiny


def test_the_readmes_table_is_that_of_the_files():
    text = Path("README.md").read_text()
    assert readme.fill(text, readme.table(Path("results"))) == text


def test_every_result_has_a_row():
    """The comparison of samplers has a table of its own."""
    for path in Path("results").glob("*/result.json"):
        assert "readme" in json.loads(path.read_text()) or path.parent.name == "shapes_samplers", path


def test_a_table_by_hand(tmp_path):
    for name in ("b", "a"):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        row = {"run": name.upper(), "hardware": "1 core", "size": "2 x 3", "time": "4 s", "result": "loss 5"}
        (folder / "result.json").write_text(json.dumps({"readme": row}))
    assert readme.table(tmp_path / "results").splitlines()[2:] == [
        "| [A](results/a/result.json) | 1 core | 2 x 3 | 4 s | loss 5 |",
        "| [B](results/b/result.json) | 1 core | 2 x 3 | 4 s | loss 5 |",
    ]
    with pytest.raises(UserError, match="once each"):
        readme.fill("no marks", "")


def test_a_judge_that_saw_real_images_has_them_beside():
    told = {"n": 20, "accuracy": 0.5, "fd": 2.0}
    real = {"n": 99, "accuracy": 0.875, "by_n": {"20": {"n": 20, "accuracy": 0.75}}}
    assert results.judged({"samples": told, "real_test": real}) == "accuracy 0.5 (0.75), Frechet distance 2"
    assert results.judged({"n": 5, "accuracy": 0.5, "accuracy_real_test": 0.75}) == "accuracy 0.5 (0.75)"
    drawn = {"n": 2000, "sampler": "ddim", "steps": 7, "guidance": 1.5}
    line = results.headline({"judge": {"samples": told, "real_test": real}, "figures": [], "samples": drawn})
    assert line == (
        "by an outside classifier (n = 20; real images in parentheses): accuracy 0.5 (0.75), Frechet distance 2; "
        "ddim, 7 steps, guidance 1.5"
    )


def test_tiles_are_the_first_of_each_class_in_order():
    """A pixel is 100 x class + number within the class; the first 50 of each of two classes make two rows of 50."""
    labels = np.tile([1, 0], 60)
    images = np.zeros((120, 2, 2, 3), np.uint8)
    for label in (0, 1):
        images[labels == label] = (100 * label + np.arange(60))[:, None, None, None]
    picture = results.tile(images, labels, per_class=50)
    assert picture.shape == (4, 100, 3)
    assert picture[0, ::2, 0].tolist() == list(range(50))
    assert picture[3, 1::2, 2].tolist() == list(range(100, 150))
    with pytest.raises(UserError, match="class 0 has 60 samples, not 61"):
        results.tile(images, labels, per_class=61)
    with pytest.raises(UserError, match="do not fill rows"):
        results.tile(images, labels, per_class=30)


def test_training_time_is_that_of_the_logged_speeds(tmp_path):
    """100 images at 50 a second, then 300 at 100 a second: 2 s and 3 s."""
    rows = [{"step": 1, "images": 100, "images_per_s": 50.0}, {"step": 4, "images": 400, "images_per_s": 100.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results.training_seconds(tmp_path) == pytest.approx(5.0)
    assert results.last_step(tmp_path) == 4
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)  # ended by a signal after the last log point
    assert results.last_step(tmp_path) == 5
    with pytest.raises(UserError, match="no metrics"):
        results.last_step(tmp_path / "none")


@pytest.mark.medium
def test_a_runs_files(tmp_path, monkeypatch, capfd):
    run = tiny.trained(tmp_path / "run")
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    settings = ("n=9", "guidance=2.0", "seed=5", "denoising=false")
    words = [f"--config.sample.{setting}" for setting in settings]
    assert tiny.run_main(capfd, f"--workdir={run}", "--mode=sample", *words).code == 0
    evaluated = {"step": 4, "weights": "ema", "n": 100, "features": "classifier", "sampler": "ddim", "steps": 7,
                 "guidance": 1.5, "fd_classifier": 3.25, "accuracy_classifier": 0.5, "inception_score": 7.5,
                 "floor": {"fd_classifier": 0.5, "inception_score": 9.5},
                 "fd_classifier_by_class": {"red": 1.0}}  # fmt: skip
    theirs = {"images": "theirs.npz", "n": 100, "fd_classifier": 9.0, "floor": {"fd_classifier": 0.5}}
    (run / "evaluations.jsonl").write_text(json.dumps(evaluated) + "\n" + json.dumps(theirs) + "\n")
    judge = tmp_path / "judge.json"
    judge.write_text(json.dumps({"accuracy": 0.25, "n": 9}))
    results.main([str(run), "--name=mine", f"--out={tmp_path}", "--per_class=2", f"--judge={judge}"])
    made = json.loads((tmp_path / "mine" / "result.json").read_text())
    assert (made["steps"], made["images_seen"], made["batch_size"]) == (4, 32, 8)
    assert made["samples"] == made["samples"] | {"n": 9, "guidance": 2.0, "seed": 5, "steps": 3}
    (figure,) = made["figures"]
    assert figure["real"] == {"fd_classifier": 0.5, "inception_score": 9.5}
    assert figure == figure | {"n": 100, "fd_classifier": 3.25, "sampler": "ddim", "steps": 7, "guidance": 1.5}
    assert "fd_classifier_by_class" not in figure
    assert "accuracy 0.25" in made["readme"]["result"]
    assert "`fd_classifier` 3.25 (real images 0.5), `inception_score` 7.5 (real images 9.5)" in made["readme"]["result"]
    assert "; n = 100, ddim 7 steps, guidance 1.5" in made["readme"]["result"]
    assert made["readme"]["size"] == "4 x 8"
    assert made["readme"]["time"] == f"{made['training_seconds']:.0f} s of training"
    told = made | {"wall_seconds": 7200.0, "recipe": "cifar10.py:best"}
    assert results.readme_row(told) == results.readme_row(told) | {"time": "120 min", "run": "`cifar10.py:best`"}
    samples = np.load(run / "samples" / "samples.npz")
    tiles = np.asarray(Image.open(tmp_path / "mine" / "samples.png"))
    assert tiles.shape == (8, 6 * 8, 3)
    first_green = samples["images"][samples["labels"] == 1][0]
    np.testing.assert_array_equal(tiles[:, 16:24], first_green)  # lossless; two of class 0 before it
    for name in ("curve.png", "grid.png"):
        assert (tmp_path / "mine" / name).stat().st_size > 0
