"""metrics.jsonl: the scalars of a run as lines of JSON, for people and scripts that have no TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from clu.metric_writers import MetricWriter

from dit_jax.errors import UserError
from dit_jax.system.files import replacing

MOST = 1e100  # a larger figure cannot be drawn and counts as none; one below its inverse counts as 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, oldest first; no file is no rows.

    A row is `{"step": int, name: number or null, ...}`. Lines that are none, such as the half of a line that a killed
    process leaves, are skipped.
    """
    return [row for row in map(parse, _lines(path)) if row is not None]


def read_objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(objects, how many lines hold none) of a file with one JSON object a line; no file is no objects.

    The half of a last line, which a process that is still writing leaves, counts as none.
    """
    objects, damaged = [], 0
    for line in filter(bytes.strip, _lines(path)):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            objects.append(found)
        else:
            damaged += 1
    return objects, damaged


def opened(path: Path) -> TextIO:
    """The file, to append to. Raises UserError if it is a link to nowhere."""
    try:
        return path.open("a", encoding="utf-8", buffering=1)
    except FileNotFoundError:
        raise UserError(f"{path} is a link to a folder that is not there; mount or make it, or remove it") from None


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line; half a line that a killed process left stays one of its own."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with opened(path) as file:
        file.write("\n" * torn + json.dumps(row) + "\n")


def drop_rows_after(path: Path, step: int) -> None:
    """Removes, atomically, the rows beyond `step` and any broken line, so that a resumed run writes no row twice."""
    lines = _lines(path)
    kept = [line for line in lines if (row := parse(line)) is not None and row["step"] <= step]
    whole = b"".join(line.rstrip(b"\n") + b"\n" for line in kept)
    if whole != b"".join(lines):
        with replacing(path) as temporary:
            temporary.write_bytes(whole)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def parse(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, brackets without end
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a file may hold."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
        return None
    return float(value) if abs(value) >= 1 / MOST else 0.0


def column(rows: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
    """float64 [rows], NaN where there is no number."""
    found = (number(row.get(name)) for row in rows)
    return np.array([np.nan if value is None else value for value in found], np.float64)


class JsonlWriter(MetricWriter):
    """Appends a line for each `write_scalars`; on return the line is with the operating system, so a kill keeps it.

    Scalars without a `loss` are an evaluation's, which has a file of its own: no row is without one. Pictures, texts
    and the rest have no place in the file and are ignored.
    """

    def __init__(self, path: Path):
        self._file = opened(path)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **scalars}`; NaN and infinities, which JSON lacks, become null."""
        if "loss" not in scalars:
            return
        row = {"step": int(step)} | {name: to_json(value) for name, value in scalars.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Ignored."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Ignored."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Ignored."""

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Ignored."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Ignored."""

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Ignored."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Ignored: the run's config.json holds them."""

    def flush(self) -> None:
        """Lines are flushed one by one already; this is for the interface."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def to_json(value: Any) -> int | float | None:
    """A scalar array as JSON can hold it: null where it is not finite."""
    scalar = np.asarray(value).item()
    return scalar if math.isfinite(scalar) else None
