"""Makes the files of results/NAME from a run's workdir: result.json, curve.png, grid.png and samples.png.

    python main.py --mode=sample --workdir=runs/cifar10 --config.sample.n=2000 ...
    python -m benchmarks.results runs/cifar10 --name=cifar10_report_gpu
    python -m benchmarks.readme

It reads what the run wrote and measures nothing itself. The samples that it shows are the first ones, not selected.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import guarded, write
from dit_jax.data.images import open_images
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.loading import read_resolved
from dit_jax.reporting.images import about_png, label_grid, save_png
from dit_jax.reporting.plots import plot_loss
from dit_jax.system.environment import SESSIONS
from dit_jax.system.jsonl import read_objects, read_rows

# a judge's names of figures, in words
JUDGED = {"is": "Inception Score", "fd": "Frechet distance", "fd_class": "Frechet distance by class"}
REAL = "_real_test"
PER_ROW, GRID_PER_CLASS = 50, 10
SAMPLING = ("sampler", "steps", "guidance", "guidance_from", "guidance_to", "spacing", "seed", "clip_x_0")
# names of figures, or their beginnings, as in kid_classifier
FIGURES = ("fid", "fd", "accuracy", "inception_score", "kid", "precision", "recall", "density", "coverage")


def last_step(run: Path) -> int:
    """Returns the last step that the run logged or, if it ended early, saved. Raises UserError if it logged none."""
    rows = read_rows(run / "metrics.jsonl")
    if not rows:
        raise UserError(f"{run} has no metrics.jsonl with a row in it; is it a run's workdir?")
    saved = (int(folder.name) for folder in (run / "checkpoints").glob("*") if folder.name.isdigit())
    return max([*(row["step"] for row in rows), *saved])


def training_seconds(run: Path) -> float:
    """Returns the time spent in train steps by the logged speeds: without starting, compiling, saving and drawing."""
    rows, before, seconds = read_rows(run / "metrics.jsonl"), 0, 0.0
    for row in rows:
        if row.get("images") and row.get("images_per_s"):
            seconds += (row["images"] - before) / row["images_per_s"]
            before = row["images"]
    return seconds


def tile(images: np.ndarray, labels: np.ndarray, per_class: int) -> np.ndarray:
    """Tiles the first `per_class` images of each class, in class order, 50 per row without gaps: uint8 [H, W, C].

    Raises:
      UserError: a class has fewer images, or the images do not fill the rows.
    """
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in range(int(labels.max()) + 1)]
    short = [i for i, found in enumerate(chosen) if len(found) < per_class]
    if short:
        raise UserError(f"class {short[0]} has {len(chosen[short[0]])} samples, not {per_class}; draw more of them")
    flat = images[np.concatenate(chosen)]
    columns = min(PER_ROW, len(flat))
    if len(flat) % columns:
        raise UserError(f"{len(flat)} images do not fill rows of {columns}; choose another --per_class")
    n, height, width, channels = flat.shape
    rows = flat.reshape(n // columns, columns, height, width, channels)
    return rows.transpose(0, 2, 1, 3, 4).reshape(n // columns * height, columns * width, channels)


def gather(run: Path) -> dict[str, Any]:
    """Returns what the run's files say about how it was made and what it reached."""
    config = read_resolved(run)
    rows = read_rows(run / "metrics.jsonl")
    step, batch = last_step(run), config.train.batch_size
    sessions, _ = read_objects(run / SESSIONS)
    first = sessions[0] if sessions else {}
    evaluations, _ = read_objects(run / "evaluations.jsonl")
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    return {
        "command": first.get("command"),
        "commit": first.get("commit"),
        "hardware": hardware(first),
        "versions": first.get("versions"),
        "sessions": len(sessions),
        "training_seconds": round(training_seconds(run), 1),
        "steps": step,
        "batch_size": batch,
        "images_seen": step * batch,
        "loss_mean_of_last_tenth_of_the_log": float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else None,
        "figures": [figures(row) for row in evaluations if isinstance(row.get("step"), int)],  # --images have no step
    }


def hardware(session: dict[str, Any]) -> str | None:
    """Returns one line on the machine from what training recorded; None if it recorded nothing."""
    if not session:
        return None
    if session["platform"] == "cpu":
        return f"{session['cores']} cores of {session['processor']}, {session['devices']} as JAX sees them"
    return f"{session['devices']}, {session['cores']} cores of {session['processor']}"


def drawn_as(samples: Path) -> dict[str, Any]:
    """Returns how the images in a folder were drawn, as --mode=sample noted it in their grid."""
    about = about_png(samples / "grid.png")
    return {key: about[key] for key in SAMPLING if key in about}


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluation's figures, with n and how the images were drawn, and the figures of real images."""
    wanted = lambda key: any(key == name or key.startswith(f"{name}_") for name in FIGURES)  # noqa: E731
    scores = lambda found: {k: v for k, v in found.items() if wanted(k) and isinstance(v, float)}  # noqa: E731
    about = {key: row[key] for key in ("n", "features", *SAMPLING) if key in row}
    at = {"at_step": row.get("step"), "weights": row.get("weights")}
    return scores(row) | about | at | {"real": scores(row.get("floor", {}))}


def judged(judge: dict[str, Any]) -> str:
    """Returns an outside judge's figures as text, each with that of real images in parentheses if it is known."""
    samples, real = judge.get("samples", judge), of_real_images(judge)
    beside = lambda name: f" ({real[name]:.3g})" if name in real else ""  # noqa: E731
    shown = {name: value for name, value in samples.items() if isinstance(value, float) and not name.endswith(REAL)}
    return ", ".join(f"{JUDGED.get(name, name)} {value:.3g}{beside(name)}" for name, value in shown.items())


def of_real_images(judge: dict[str, Any]) -> dict[str, Any]:
    """Returns a judge's figures of real images: of the same n, if it has them, else all, else those named *REAL."""
    samples, real = judge.get("samples", judge), judge.get("real_test", {})
    named = {name.removesuffix(REAL): value for name, value in samples.items() if name.endswith(REAL)}
    return real.get("by_n", {}).get(str(samples.get("n")), real) or named


def headline(result: dict[str, Any]) -> str:
    """Returns a line for README: an outside judge's figures and the last evaluation's; the loss if there are none."""
    found = []
    if result.get("judge"):
        n = result["judge"].get("samples", result["judge"]).get("n")
        known = "; real images in parentheses" if of_real_images(result["judge"]) else ""
        name = result["judge"].get("name", "an outside classifier")
        found.append(f"by {name}{f' (n = {n:,}{known})' if n else ''}: {judged(result['judge'])}")
        if not result["figures"]:
            found.append("{sampler}, {steps} steps, guidance {guidance:g}".format(**result["samples"]))
    if result["figures"]:
        last = result["figures"][-1]
        shown = lambda name: name.partition("_")[0] in ("fid", "fd", "accuracy") or name == "inception_score"  # noqa: E731
        names = [name for name in last if shown(name) and name in last["real"]]
        pairs = [f"`{name}` {last[name]:.3g} (real images {last['real'][name]:.3g})" for name in names]
        how = f"n = {last['n']:,}, {last['sampler']} {last['steps']} steps, guidance {last['guidance']:g}"
        found.append(f"{', '.join(pairs)}; {how}")
    return "; ".join(found) or f"loss {result['loss_mean_of_last_tenth_of_the_log']:.4f}"


def readme_row(result: dict[str, Any]) -> dict[str, str]:
    """Returns the cells of a row of README's table."""
    told = result["wall_seconds"] or result["training_seconds"]
    time = f"{told / 60:.0f} min" if told >= 120 else f"{told:.0f} s"
    return {
        "run": f"`{result['recipe']}`" if result["recipe"] else result["name"],
        "hardware": result["hardware"] or "not recorded",
        "size": f"{result['steps']:,} x {result['batch_size']}",
        "time": time if result["wall_seconds"] else f"{time} of training",
        "result": headline(result),
    }


def main(argv: Sequence[str]) -> None:
    """Writes the files of results/NAME."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a workdir with samples/ in it")
    parser.add_argument("--name", required=True, help="name of the folder to write")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where that folder goes")
    parser.add_argument("--recipe", default="", help="its name in README, such as cifar10.py:best")
    parser.add_argument("--note", default="", help="what else a reader must know")
    parser.add_argument(
        "--wall_seconds", type=float, help="of the whole command by the clock, which runs do not record"
    )
    parser.add_argument(
        "--judge", type=Path, help='JSON of an outside judge of the same samples, stored unchanged; may have its "name"'
    )
    parser.add_argument("--per_class", type=int, default=200, help="images of each class in samples.png")
    flags = parser.parse_args(argv)
    folder = flags.out / flags.name
    result: dict[str, Any] = {"name": flags.name, "recipe": flags.recipe, "note": flags.note} | gather(flags.run)
    result["wall_seconds"] = flags.wall_seconds
    if flags.judge:
        result["judge"] = json.loads(flags.judge.read_text())
    info = Experiment(read_resolved(flags.run)).info
    samples = flags.run / "samples"
    found = open_images(samples / "samples.npz", info.image_shape, len(info.class_names), "samples")
    images, labels = np.concatenate(list(found.chunks())), found.labels
    if labels is None:
        raise UserError(f"{samples / 'samples.npz'} has no labels; draw the samples with --mode=sample")
    save_png(folder / "samples.png", tile(images, labels, flags.per_class))
    few = np.concatenate([np.flatnonzero(labels == i)[:GRID_PER_CLASS] for i in range(len(info.class_names))])
    save_png(folder / "grid.png", label_grid(images[few], labels[few], info.class_names))
    plot_loss(flags.run / "metrics.jsonl", folder / "curve.png")
    result["samples"] = {"n": len(images), "weights": "ema"} | drawn_as(samples)
    result["readme"] = readme_row(result)
    write(result, folder / "result.json")
    print(f"{folder}: result.json, curve.png, grid.png, samples.png")


if __name__ == "__main__":
    sys.exit(guarded(main))
