"""The loss curve: what it draws from which rows, and when there is nothing to draw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dit_jax.reporting import plots
from dit_jax.reporting.smoothing import running_mean


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """A list that collects the figures drawn during the test."""
    drawn = []

    class Remembered(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Remembered)
    return drawn


def lines(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    axes = figure.axes[panel]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_draws_loss_quartiles_and_gradient_norm_over_images(tmp_path, figures):
    rows = [
        {"step": s, "images": 64 * s, "loss": 1 / s, "loss_q1": 2 / s, "loss_q4": 0.5 / s, "grad_norm": 0.1 * s}
        for s in (1, 2, 4)
    ]
    assert plots.plot_loss(write(tmp_path / "metrics.jsonl", rows), tmp_path / "loss.png")
    drawn = lines(figures[0])
    assert drawn["what training minimises"] == ([64, 128, 256], [1, 0.5, 0.25])
    assert drawn["the quarter with least noise"][1] == [2, 1, 0.5]
    assert drawn["the quarter with most noise"][1] == [0.5, 0.25, 0.125]
    assert set(drawn) == {"what training minimises", "the quarter with least noise", "the quarter with most noise"}
    ((_, grad_norm),) = lines(figures[0], 1).values()
    np.testing.assert_allclose(grad_norm, [0.1, 0.2, 0.4])
    top, bottom = figures[0].axes
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("loss", "gradient norm", "images seen")
    assert top.get_title(loc="left") == "training loss: 0.2500 at 256 images"
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "linear")  # values span factors of 16 and 4
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1200, 840)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_values_that_were_not_finite_leave_a_gap(tmp_path, figures):
    rows = [{"step": s, "images": s, "loss": None if s == 2 else 0.5} for s in (1, 2, 3)]
    rows += [{"step": 4, "images": 4, "loss": None}, {"step": 4, "fid": 30.0}]
    assert plots.plot_loss(write(tmp_path / "m", rows), tmp_path / "loss.png")
    images, loss = lines(figures[0])["what training minimises"]
    assert images == [1, 2, 3, 4]
    np.testing.assert_array_equal(loss, [0.5, np.nan, 0.5, np.nan])
    assert len(figures[0].axes) == 1
    assert figures[0].axes[0].get_title(loc="left").endswith("at 3 images")


def test_one_row_is_a_visible_point(tmp_path):
    path = write(tmp_path / "m", [{"step": 1, "images": 64, "loss": 0.5}])
    assert plots.plot_loss(path, tmp_path / "loss.png")
    inner = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))[100:-150, 200:-50].astype(int)
    assert (np.abs(inner - (0x1F, 0x3B, 0x70)).sum(-1) < 30).sum() >= 20


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "images": 9, "lo', '{"step": 1, "images": 9, "loss": null}\n'])
def test_nothing_to_draw_writes_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "m").write_text(text)
    assert not plots.plot_loss(tmp_path / "m", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_running_mean_by_hand():
    # 100 rows: a window of 2, but only from row 10 on (a tenth of the rows so far, plus one)
    values = np.arange(100.0)
    values[50] = np.nan
    mean = running_mean(values)
    np.testing.assert_array_equal(mean[:9], values[:9])
    np.testing.assert_array_equal(mean[[9, 10, 49, 51, 52, 99]], [8.5, 9.5, 48.5, 51.0, 51.5, 98.5])
    assert np.isnan(mean[50])


def test_a_huge_value_leaves_those_after_it():
    few = np.array([1, 1e20, 0.5, np.nan, 0.25])
    np.testing.assert_array_equal(running_mean(few), few)
    many = np.full(400, 0.5)
    many[100] = 1e20
    np.testing.assert_array_equal(running_mean(many)[120:], 0.5)


def test_no_global_plotting_state(tmp_path):
    write(tmp_path / "m", [{"step": 1, "images": 64, "loss": 0.5}])
    code = (
        "import sys, pathlib; from dit_jax.reporting.plots import plot_loss\n"
        f"assert plot_loss(pathlib.Path({str(tmp_path / 'm')!r}), pathlib.Path({str(tmp_path / 'loss.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_number_leaves_a_gap(tmp_path, figures):
    rows = [{"step": 1, "images": "y", "loss": 1.0}, {"step": 2, "images": 8, "loss": "x"}]
    rows += [{"step": 3, "images": 12, "loss": 2.0, "loss_q1": [1]}, {"step": 4, "images": 16, "loss": 10**400}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plots.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    images, loss = lines(figures[0])["what training minimises"]
    assert images == [8, 12, 16]
    np.testing.assert_array_equal(loss, [np.nan, 2, np.nan])


@pytest.mark.medium
def test_a_backend_that_is_not_installed_is_not_needed(tmp_path):
    """A notebook sets one for the commands in its cells."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images": 8, "loss": 1.0}\n')
    code = "import pathlib, sys; from dit_jax.jobs.train import draw_loss; draw_loss(pathlib.Path(sys.argv[1]))"
    environ = os.environ | {"MPLBACKEND": "no_such_backend"}
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=environ).returncode == 0
    assert (tmp_path / "loss.png").stat().st_size > 1000
