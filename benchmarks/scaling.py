"""Times a train step by batch, tokens, depth, width and devices, next to what its products alone predict.

    python -m benchmarks.scaling --out=results/scaling_cpu        # about five minutes on two cores: a small base model

One value is changed at a time, the others are the base's. The prediction is the base's time times the ratio of the
products' FLOPs (flops.py). It assumes that everything scales like the products, and that two GPUs halve the time (CPU
devices share the same cores).
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks import commands, contest, flops, machine
from dit_jax.errors import UserError
from dit_jax.system.files import replacing

BASE = {"train.batch_size": 16, "model.width": 128, "model.depth": 4, "model.patch_size": 4, "train.steps_per_call": 4}
SHOWN = ("model.width", "model.depth", "train.batch_size", "model.patch_size")  # of the base, in the title
# axis: (key, values); the patch size sets the tokens, JAX_NUM_CPU_DEVICES or the visible GPUs the devices
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("train.batch_size", (4, 8, 16, 32, 64)),
    "tokens": ("model.patch_size", (8, 4, 2)),
    "depth": ("model.depth", (1, 2, 4, 8)),
    "width": ("model.width", (64, 128, 256, 384)),
    "devices": ("devices", (1, 2)),
}
BASE_COLOR, PREDICTED_COLOR = "#1f3b70", "#c0602a"


@dataclass(frozen=True)
class Point:
    """One size: `x` is its position on its axis, `settings` the config values that make it, on `devices` devices."""

    axis: str
    x: int
    settings: dict[str, int]
    devices: int

    @property
    def assignments(self) -> list[str]:
        """The overrides of the config."""
        return [f"{key}={value}" for key, value in self.settings.items()]


def points(base: dict[str, int], axes: dict[str, tuple[str, tuple[int, ...]]], config: str) -> list[Point]:
    """Returns every point of every axis; each axis contains the base."""
    made = []
    for axis, (key, values) in axes.items():
        for value in values:
            settings = base if key == "devices" else base | {key: value}
            point = Point(axis, value, settings, value if key == "devices" else 1)
            if axis == "tokens":
                built = commands.experiment(config, point.assignments)
                point = Point(axis, flops.tokens(built.model, built.info.image_shape), settings, 1)
            made.append(point)
    return made


def cost(point: Point, config: str) -> float:
    """Returns the FLOPs of a step's products on each GPU, or on the CPU, whose devices share its cores."""
    made = commands.experiment(config, point.assignments)
    apart = point.devices if machine.visible_cards() else 1
    return flops.training(made.model, made.info.image_shape) * point.settings["train.batch_size"] / apart


def measure(point: Point, config: str, repeats: int, seconds: float) -> dict[str, Any]:
    """Measures the time of a step, in a process of its own."""
    made = commands.experiment(config, point.assignments)
    (ours,) = commands.contestants("train", made, config, point.assignments, peers="")
    env = machine.only_cards(point.devices) or {"JAX_NUM_CPU_DEVICES": str(point.devices)}
    with contest.running([contest.with_env(ours, env)]) as (process,):
        units = contest.units_for(process, seconds)
        times = [1000 * process.run(units)["seconds"] / units for _ in range(repeats)]
    return {"axis": point.axis, "x": point.x, "devices": point.devices, "settings": point.settings} | {
        "step_ms": contest.spread(times),
        "flops": cost(point, config),
    }


def predict(rows: Sequence[dict[str, Any]], base_cost: float) -> None:
    """Adds `predicted_ms` to each row: the base's median time over all axes that measured it, scaled by FLOPs."""
    base = [row["step_ms"]["median"] for row in rows if row["flops"] == base_cost and row["devices"] == 1]
    milliseconds = sorted(base)[len(base) // 2]
    for row in rows:
        row["predicted_ms"] = milliseconds * row["flops"] / base_cost


def draw(rows: Sequence[dict[str, Any]], title: str, out: Path) -> None:
    """Draws a panel per axis: the measured times with their spread, and the predicted ones."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.1 * len(axes), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        draw_axis(panel, axis, [row for row in rows if row["axis"] == axis])
    panels[0].set_ylabel("train step, ms")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_axis(panel: Axes, axis: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draws one panel, with both axes logarithmic."""
    rows = sorted(rows, key=lambda row: row["x"])
    x = [row["x"] for row in rows]
    median, least, most = ([row["step_ms"][name] for row in rows] for name in ("median", "min", "max"))
    spread = [[m - a for m, a in zip(median, least, strict=True)], [b - m for m, b in zip(median, most, strict=True)]]
    panel.plot(x, [row["predicted_ms"] for row in rows], "--", color=PREDICTED_COLOR, label="by FLOPs alone")
    panel.errorbar(x, median, spread, fmt="o-", color=BASE_COLOR, capsize=2, label="measured")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(x, [str(value) for value in x])
    for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    panel.set_xlabel(axis)
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def kept(out: Path, measured: Sequence[str], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of an earlier call's other axes, if it measured the same commit and base on the same machine."""
    path = out / "scaling.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if any(before.get(key) != about[key] for key in ("commit", "processor", "gpus", "config", "base")):
        return []
    return [row for row in before["rows"] if row["axis"] not in measured]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the flags."""
    made = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="folder for scaling.json and scaling.png")
    made.add_argument("--config", default="configs/cifar10.py:report", help="experiment from which the base is made")
    made.add_argument("--axes", default=",".join(AXES), help="axes to measure; others measured before are kept")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--seconds", type=float, default=1.5)
    return made


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, predicts and draws; returns what scaling.json stores."""
    flags = parser().parse_args(argv)
    unknown = [name for name in flags.axes.split(",") if name not in AXES]
    if unknown:
        raise UserError(f"--axes={flags.axes}: {unknown[0]!r} is not known; use any of {', '.join(AXES)}")
    axes = {name: AXES[name] for name in flags.axes.split(",")}
    about = {**machine.describe(), "config": flags.config, "base": BASE}
    rows = []
    for point in points(BASE, axes, flags.config):
        if point.devices > (len(machine.visible_cards()) or os.cpu_count() or 1):
            continue
        rows.append(measure(point, flags.config, flags.repeats, flags.seconds))
        print("{axis} {x}: {0:.1f} ms".format(rows[-1]["step_ms"]["median"], **rows[-1]), flush=True)
    rows = [*kept(flags.out, [*axes], about), *rows]
    predict(rows, cost(Point("base", 0, BASE, 1), flags.config))
    result = {**about, "rows": rows}
    commands.write(result, flags.out / "scaling.json")
    width, depth, batch, patch = (BASE[key] for key in SHOWN)
    base = f"width {width}, depth {depth}, batch {batch}, patch {patch}"
    draw(rows, f"{base}; {', '.join(result['gpus']) or result['processor']}", flags.out / "scaling.png")
    return result


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
