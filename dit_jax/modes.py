"""The modes of main.py by name."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from dit_jax.checks import require
from dit_jax.together import several

# name -> (module, job of (config, workdir, out), which returns an exit code or None). Each is imported when it is run:
# a start of training waits for neither matplotlib nor Inception.
MODES = {
    "train": ("dit_jax.jobs", "train"),
    "sample": ("dit_jax.draw", "sample"),
    "train_classifier": ("dit_jax.classifier_job", "train_classifier"),
    "evaluate": ("dit_jax.evaluate_job", "evaluate"),
    "report": ("dit_jax.report_job", "report"),
}


def run(mode: str, config: ConfigDict, workdir: Path, out: Path | None, images: Path | None) -> int:
    """Runs a mode and returns the exit code. `images` is for `evaluate` alone.

    Raises:
      UserError: `images` with another mode, a report by several processes, and what the mode itself refuses.
    """
    evaluates = mode == "evaluate"
    require(images is None or evaluates, "--images", images, f"--mode={mode} reads none; leave --images away")
    require(mode != "report" or not several(), "--mode", mode, "it reads files: start one process (--cluster=none)")
    module, name = MODES[mode]
    job = getattr(importlib.import_module(module), name)
    return job(config, workdir, out, *([images] if evaluates else [])) or 0
