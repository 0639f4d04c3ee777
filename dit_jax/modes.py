"""The modes of main.py by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dit_jax import jobs
from dit_jax.checks import require
from dit_jax.classifier_job import train_classifier
from dit_jax.draw import sample
from dit_jax.evaluate_job import evaluate
from dit_jax.report_job import report
from dit_jax.together import several

# name -> job of (config, workdir, out), which returns an exit code or None
MODES: dict[str, Callable[..., Any]] = {
    "train": jobs.train,
    "sample": sample,
    "train_classifier": train_classifier,
    "evaluate": evaluate,
    "report": report,
}


def run(mode: str, config: ConfigDict, workdir: Path, out: Path | None, images: Path | None) -> int:
    """Runs a mode and returns the exit code. `images` is for `evaluate` alone.

    Raises:
      UserError: `images` with another mode, a report by several processes, and what the mode itself refuses.
    """
    if mode == "evaluate":
        return evaluate(config, workdir, out, images) or 0
    require(mode != "report" or not several(), "--mode", mode, "it reads files: start one process (--cluster=none)")
    require(images is None, "--images", images, f"--mode={mode} reads none; leave --images away")
    return MODES[mode](config, workdir, out) or 0
