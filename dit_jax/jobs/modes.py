"""Runs the modes of main.py by name."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dit_jax.jobs.evaluate import evaluate
from dit_jax.jobs.report import report
from dit_jax.jobs.sample import sample
from dit_jax.jobs.train import train
from dit_jax.jobs.train_autoencoder import train_autoencoder
from dit_jax.jobs.train_classifier import train_classifier
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.settings.doubts import doubts
from dit_jax.system.files import expanded
from dit_jax.system.together import check_alike, check_devices, is_first, several

logger = logging.getLogger(__name__)

# Keys in which the processes of a run may differ, as they say where something is on the machine.
PLACES = ("data.data_dir", "data.root", "data.content", "evaluate.inception_path", "sample.images", "sample.mask",
          "autoencoder.pretrained")  # fmt: skip
# The settings of JAX that change what a seed draws, and the values that every run uses.
NUMBERS = {"jax_enable_x64": False, "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True,
           "jax_random_seed_offset": 0}  # fmt: skip
# Each job takes (config, workdir, out), and evaluate's also `images`; it returns an exit code or None.
MODES: dict[str, Callable[..., Any]] = {
    "train": train,
    "sample": sample,
    "train_autoencoder": train_autoencoder,
    "train_classifier": train_classifier,
    "evaluate": evaluate,
    "report": report,
}


def trained_folder(mode: str, workdir: str | None) -> Path | None:
    """Returns the folder in which only this mode may train; None if it does not train, or without a `workdir`.

    For `train_autoencoder` it is the run's folder, because the run may be about to learn those latents.
    """
    below = {"train": "", "train_autoencoder": "", "train_classifier": "classifier"}
    return expanded(workdir) / below[mode] if workdir and mode in below else None


def fix_numbers() -> None:
    """Gives every run the same JAX settings for random numbers and bit widths, whatever the environment says."""
    for name, value in NUMBERS.items():
        if getattr(jax.config, name) != value:
            logger.warning("%s is overridden with %s: a run's numbers depend only on its config", name.upper(), value)
            jax.config.update(name, value)


def named(flag: str, path: str | None) -> Path | None:
    """Returns the path that a flag names, or None if it was not given. Raises UserError if it is empty."""
    require(path != "", flag, "''", "perhaps a variable is unset; give a folder or a file, or omit it")
    return None if path is None else expanded(path)


def run(mode: str, config: ConfigDict, workdir: Path, out: str | None, images: str | None) -> int:
    """Runs a mode and returns its exit code. Only `evaluate` takes `images`.

    Raises:
      UserError: there are no devices, another mode is given `images`, several processes run `report`, the processes
        differ in their configs or numbers of devices, or the mode itself raises it.
    """
    fix_numbers()
    evaluates = mode == "evaluate"
    require(images is None or evaluates, "--images", images, f"--mode={mode} does not use it; omit --images")
    require(mode != "report" or not several(), "--mode", mode, "it only reads files; use one process (--cluster=none)")
    check_devices()
    check_alike("config", [mode, *(leaf for leaf in configs.leaves(config) if leaf[0] not in PLACES)],
                "start them with the same flags")  # fmt: skip
    if is_first() and images is None:
        for line in doubts(config, mode):
            logger.warning("warning: %s", line)
    places = [named("--out", out), *([named("--images", images)] if evaluates else [])]
    return MODES[mode](config, workdir, *places) or 0
