"""The modes of main.py by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dit_jax.checks import require
from dit_jax.together import several

MODES = ("train", "sample", "train_classifier", "evaluate", "report")


def job_of(mode: str) -> Callable[..., Any]:
    """The job of a mode: (config, workdir, out), and `images` of evaluate, -> an exit code or None.

    Imported when it is asked for: a start of training waits neither for matplotlib nor for Inception.
    """
    if mode == "train":
        from dit_jax.jobs import train as job
    elif mode == "sample":
        from dit_jax.draw import sample as job
    elif mode == "train_classifier":
        from dit_jax.classifier_job import train_classifier as job
    elif mode == "evaluate":
        from dit_jax.evaluate_job import evaluate as job
    else:
        from dit_jax.report_job import report as job
    return job


def run(mode: str, config: ConfigDict, workdir: Path, out: Path | None, images: Path | None) -> int:
    """Runs a mode and returns the exit code. `images` is for `evaluate` alone.

    Raises:
      UserError: `images` with another mode, a report by several processes, and what the mode itself refuses.
    """
    evaluates = mode == "evaluate"
    require(images is None or evaluates, "--images", images, f"--mode={mode} reads none; leave --images away")
    require(mode != "report" or not several(), "--mode", mode, "it reads files: start one process (--cluster=none)")
    return job_of(mode)(config, workdir, out, *([images] if evaluates else [])) or 0
