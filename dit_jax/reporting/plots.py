"""Draws the loss curve of a run from its metrics.jsonl."""

from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from dit_jax.reporting.jsonl import column, number
from dit_jax.reporting.smoothing import LOSS_LABEL, QUARTILE_LABELS, QUARTILES, is_wide, running_mean, window
from dit_jax.system.files import replacing
from dit_jax.system.jsonl import read_rows

QUARTILE_COLORS = ("#9ecae1", "#a1d99b", "#fdc98e", "#bcbddc")  # lighter than the main curve, the loss
LOSS_COLOR, GRAD_COLOR = "#1f3b70", "#8c4b3c"
DOTS_UP_TO = 20  # points of a curve: the line of a single point is invisible


def plot_loss(metrics_jsonl: Path, out: Path) -> bool:
    """Draws the training loss against the images seen, and the gradient norm below it if there is one, as a PNG.

    The losses by noise quartile are drawn lighter if the rows have them. Values that were not finite leave a gap.

    Returns:
        False, and writes nothing, if no row has both `images` and a finite `loss`.
    """
    rows = [row for row in read_rows(metrics_jsonl) if number(row.get("images")) is not None and "loss" in row]
    loss = column(rows, "loss")
    if not np.isfinite(loss).any():
        return False
    images, grad_norm = column(rows, "images"), column(rows, "grad_norm")
    panels = 2 if np.isfinite(grad_norm).any() else 1

    figure = Figure(figsize=(8, 4 if panels == 1 else 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [3.0, 1.2][:panels]
    axes = figure.subplots(panels, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    _draw_loss(axes[0], images, loss, {name: column(rows, name) for name in QUARTILES})
    if panels == 2:
        _draw_curve(axes[1], images, grad_norm, GRAD_COLOR)
        _style(axes[1], "gradient norm", grad_norm)
    axes[-1].set_xlabel("images seen")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return True


def _draw_loss(axes: Axes, images: np.ndarray, loss: np.ndarray, quartiles: dict[str, np.ndarray]) -> None:
    _draw_curve(axes, images, loss, LOSS_COLOR, label=LOSS_LABEL)
    present = [name for name in QUARTILES if np.isfinite(quartiles[name]).any()]
    for name, color, label in zip(QUARTILES, QUARTILE_COLORS, QUARTILE_LABELS, strict=True):
        if name in present:
            axes.plot(images, running_mean(quartiles[name]), color=color, lw=1.3, label=label, marker=_marker(loss))
    if present:
        figure = cast(Figure, axes.figure)
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    last = np.flatnonzero(np.isfinite(loss))[-1]
    title = f"training loss: {running_mean(loss)[last]:.4f} at {EngFormatter(sep='')(float(images[last]))} images"
    axes.set_title(title, fontsize=11, loc="left")
    _style(axes, "loss", np.concatenate([loss, *(quartiles[name] for name in present)]))


def _draw_curve(axes: Axes, images: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Draws the values, faint behind their running mean if there are many."""
    if window(values) > 1:
        axes.plot(images, values, color=color, alpha=0.2, lw=0.8)
    axes.plot(images, running_mean(values), color=color, lw=1.8, label=label, marker=_marker(values), zorder=3)


def _style(axes: Axes, label: str, values: np.ndarray) -> None:
    if is_wide(values[np.isfinite(values)]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _marker(values: np.ndarray) -> str:
    """Returns a dot for short runs, else no marker."""
    return "." if len(values) <= DOTS_UP_TO else ""
