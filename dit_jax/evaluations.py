"""evaluations.jsonl: every evaluation of a run, one a line, and which of those made in training was the best."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_jax.evaluation.evaluate import NAMES
from dit_jax.settings.checks import require
from dit_jax.system.files import replacing
from dit_jax.system.jsonl import append as append_line
from dit_jax.system.jsonl import parse, read_rows

NAME = "evaluations.jsonl"
TRAINING = "training"  # `during` of the rows that training wrote
# Only rows that agree in these can be compared.
SETTINGS = ("n", "seed", "sampler", "steps", "spacing", "variance", "eta", "guidance", "guidance_from", "guidance_to",
            "classifier_scale", "clip_x_0", "weights", "features", "features_sha256")  # fmt: skip


def append(workdir: Path, row: Mapping[str, Any]) -> None:
    """Adds a line."""
    append_line(workdir / NAME, row)


def of_training(workdir: Path) -> list[dict[str, Any]]:
    """The rows that training wrote, oldest first, without damaged ones."""
    return [row for row in read_rows(workdir / NAME) if is_of_training(row)]


def is_of_training(row: Mapping[str, Any]) -> bool:
    """Whether training wrote a row, and it tells its step and its distance."""
    if row.get("during") != TRAINING:
        return False
    metric = NAMES.get(str(row.get("features")), {}).get("frechet", "")
    return all(isinstance(row.get(key), int | float) for key in ("step", metric))


def drop_after(workdir: Path, step: int) -> None:
    """Removes, atomically, what training wrote beyond `step`: a resumed run writes it again."""
    path = workdir / NAME
    if any(row["step"] > step for row in of_training(workdir)):
        with replacing(path) as temporary:
            kept = (line for line in path.read_bytes().splitlines(keepends=True) if not _is_late(line, step))
            temporary.write_bytes(b"".join(kept))


def _is_late(line: bytes, step: int) -> bool:
    row = parse(line)
    return row is not None and is_of_training(row) and row["step"] > step


def best(workdir: Path) -> dict[str, Any] | None:
    """The row of training with the smallest distance, of those made as the newest was; None without any."""
    rows = of_training(workdir)
    alike = [row for row in rows if all(row.get(key) == rows[-1].get(key) for key in SETTINGS)]
    return min(alike, key=distance, default=None)


def best_step(workdir: Path) -> int | None:
    """The step of `best`."""
    row = best(workdir)
    return None if row is None else row["step"]


def distance(row: Mapping[str, Any]) -> float:
    """A row's Frechet distance, under the name that its features give it."""
    return row[NAMES[row["features"]]["frechet"]]


def wanted_step(workdir: Path, name: str) -> int | None:
    """The step that `sample.checkpoint`, `name`, asks for; None for the newest.

    Raises:
      UserError: there is no best one yet, or no checkpoint of that step; says which there are.
    """
    if name == "newest":
        return None
    step = best_step(workdir) if name == "best" else int(name)
    none = "no evaluation was made in training, see evaluate.every_steps; use newest, or a step"
    require(step is not None, "sample.checkpoint", name, none)
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    there = f"step {step} is not in {workdir / 'checkpoints'}; there are {', '.join(map(str, steps)) or 'none'}"
    require(step in steps, "sample.checkpoint", name, there)
    return step
