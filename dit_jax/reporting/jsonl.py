"""metrics.jsonl: the scalars of a run as lines of JSON, for people and scripts without TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu.metric_writers import MetricWriter

from dit_jax.system.jsonl import opened

MOST = 1e100  # a larger number cannot be drawn and counts as missing; one below its inverse counts as 0


def number(value: Any) -> float | None:
    """Returns a number of at most MOST in size as a float, or None for anything else that a file may hold."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
        return None
    return float(value) if abs(value) >= 1 / MOST else 0.0


def column(rows: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
    """Returns the values of `name`, float64 [rows], NaN where there is no number."""
    found = (number(row.get(name)) for row in rows)
    return np.array([np.nan if value is None else value for value in found], np.float64)


class JsonlWriter(MetricWriter):
    """Appends a line for each `write_scalars` and passes it to the operating system at once, so a kill loses none.

    Scalars without a `loss` are skipped: they are an evaluation's, which has a file of its own. Pictures, texts and all
    else are ignored too.
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
        """Flushes the file, for the interface: each line has been flushed already."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def to_json(value: Any) -> int | float | None:
    """Returns a scalar array as a number for JSON; None (null) if it is not finite."""
    scalar = np.asarray(value).item()
    return scalar if math.isfinite(scalar) else None
