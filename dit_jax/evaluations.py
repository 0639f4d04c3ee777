"""evaluations.jsonl: every evaluation of a run, one per line, and which of those made in training was the best."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dit_jax.evaluation.evaluate import NAMES
from dit_jax.reporting.report_figures import SETTINGS
from dit_jax.settings.checks import require
from dit_jax.system.jsonl import append as append_line
from dit_jax.system.jsonl import keep_lines, read_rows

logger = logging.getLogger(__name__)
NAME = "evaluations.jsonl"
TRAINING = "training"  # the value of `during` in rows that training wrote


def append(workdir: Path, row: Mapping[str, Any]) -> None:
    """Adds a row."""
    append_line(workdir / NAME, row)


def of_training(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows that training wrote, oldest first, without damaged ones."""
    return [row for row in read_rows(workdir / NAME) if is_of_training(row)]


def is_of_training(row: Mapping[str, Any]) -> bool:
    """Returns whether training wrote the row, and the row has a step and a distance."""
    if row.get("during") != TRAINING:
        return False
    metric = NAMES.get(str(row.get("features")), {}).get("frechet", "")
    return all(isinstance(row.get(key), int | float) for key in ("step", metric))


def drop_after(workdir: Path, step: int) -> None:
    """Removes, atomically, the rows that training wrote beyond `step`: a resumed run writes them again."""
    keep_lines(workdir / NAME, lambda row: row is None or not is_of_training(row) or row["step"] <= step)


def alike(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of training that were made with the settings of the newest one."""
    rows = of_training(workdir)
    return [row for row in rows if all(row.get(key) == rows[-1].get(key) for key in SETTINGS)]


def best_step(workdir: Path, steps: Collection[int]) -> int | None:
    """Returns the step in `steps`, which have checkpoints, with the smallest distance; None if none was evaluated."""
    return min((row for row in alike(workdir) if row["step"] in steps), key=distance, default={"step": None})["step"]


def distance(row: Mapping[str, Any]) -> float:
    """Returns a row's Frechet distance, whose name depends on the row's features."""
    return row[NAMES[row["features"]]["frechet"]]


def wanted_step(workdir: Path, name: str) -> int | None:
    """Returns the step that `sample.checkpoint`, `name`, asks for; None for the newest.

    Raises:
      UserError: there is no best step yet, or no checkpoint of the wanted step; then says which there are.
    """
    if name == "newest":
        return None
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    there = f"{workdir / 'checkpoints'} has {', '.join(map(str, steps)) or 'none'}"
    if name != "best":
        require(int(name) in steps, "sample.checkpoint", name, f"there is no checkpoint of that step; {there}")
        return int(name)
    rows, step = alike(workdir), best_step(workdir, steps)
    none = "there was no evaluation in training (see evaluate.every_steps); use newest, or a step"
    require(bool(rows), "sample.checkpoint", name, none)
    require(step is not None, "sample.checkpoint", name, f"the checkpoints evaluated in training are gone; {there}")
    first = min(rows, key=distance)["step"]
    if first != step:
        logger.warning("step %d was better, but its checkpoint is gone: step %d is the best that is left", first, step)
    return step
