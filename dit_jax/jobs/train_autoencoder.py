"""The mode train_autoencoder: trains a workdir's autoencoder, and measures its latents and reconstructions."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit_jax.companions.autoencoder import (
    LATENTS_JSON,
    AutoencoderExperiment,
    autoencoder_config,
    learnt_with,
    measured_step,
    read_latents,
)
from dit_jax.companions.base import free_keys, restore
from dit_jax.companions.pretrained import load_autoencoder
from dit_jax.data import datasets
from dit_jax.data.datasets import Records
from dit_jax.data.pipeline import to_float
from dit_jax.errors import UserError
from dit_jax.evaluation.features import weights_hash
from dit_jax.jobs.train import find_data, run_training
from dit_jax.models.autoencoder import Codec
from dit_jax.reporting.images import COLUMNS, label_grid, save_png, to_uint8
from dit_jax.settings import configs
from dit_jax.settings.checks import check_downsample, require
from dit_jax.system.files import expanded, write_json
from dit_jax.system.lock import only_trainer
from dit_jax.system.progress import Progress
from dit_jax.system.together import first_before_others, is_first, whole
from dit_jax.training import sharding
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import create
from dit_jax.workdir import ANOTHER, SAMPLE_FREE_KEYS, begun, check_savable, check_workdir, make_folder

logger = logging.getLogger(__name__)
OWN_KEYS = ("autoencoder.downsample", "autoencoder.channels", "autoencoder.width", "autoencoder.depth",
            "autoencoder.kl_weight", "autoencoder.batch_size", "autoencoder.learning_rate")  # fmt: skip
# The most images, and pixels in them, to measure: training images for the latents' statistics, test images for PSNR.
MEASURED, PIXELS = 10_000, 2**28
BATCH, BATCH_PIXELS = 100, 2**20  # of these at a time


def train_autoencoder(config: ConfigDict, workdir: Path, out: Path | None) -> int:
    """Trains the autoencoder in WORKDIR/autoencoder, or resumes; ends with `latents.json` and `reconstructions.png`.

    With `autoencoder.pretrained`, the weights of that file are put there instead. Returns the exit code, like `train`.

    Raises:
      UserError: as in `train`; or the workdir holds a run of another config, or one that has learnt latents which would
        change, or the pretrained file cannot be used.
    """
    require(out is None, "--out", out, "the autoencoder goes to WORKDIR/autoencoder; omit --out")
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    check_savable(workdir)
    experiment = AutoencoderExperiment(autoencoder_config(config))
    c = config.autoencoder
    check_downsample(c.downsample, experiment.info.image_shape)
    if is_first():
        make_folder(workdir, "--workdir")
    with only_trainer(workdir):  # a run there may be about to learn these latents
        return train_or_put(config, workdir, experiment)


def train_or_put(config: ConfigDict, workdir: Path, experiment: AutoencoderExperiment) -> int:
    """Does the part of `train_autoencoder` during which nobody else may train in the workdir."""
    c, folder, code = config.autoencoder, workdir / experiment.section, 0
    if c.pretrained:
        put_pretrained(workdir, experiment)
    else:
        known = begun(folder)
        taken = dict(configs.leaves(known)).get("autoencoder.pretrained") if known else ""
        fix = f"{folder} has the weights of {taken}; use that file, or train in another workdir"
        require(not taken, "autoencoder.pretrained", "''", fix)
        fix = f"move {folder} elsewhere to train another"
        if learnt_with(workdir):
            _, state = restore(AutoencoderExperiment, workdir, config)
            step = max(int(state.step), measured_step(folder))  # the checkpoint that was measured may be damaged
            further = f"the run in {workdir} was trained on the latents of step {step}; {ANOTHER}"
            require(c.steps <= step, "autoencoder.steps", c.steps, further)
            fix = f"the run in {workdir} was trained on its latents: {ANOTHER}"
        code = run_training(experiment, folder, free_keys(config, OWN_KEYS), fix)
    if not code:
        measure(workdir, experiment)
    return code


def put_pretrained(workdir: Path, experiment: AutoencoderExperiment) -> None:
    """Saves the weights of `autoencoder.pretrained` as step 0 in WORKDIR/autoencoder, unless they are there already.

    Raises:
      UserError: the file cannot be used, or another autoencoder is there.
    """
    folder, config = workdir / experiment.section, experiment.config
    path = expanded(config.autoencoder.pretrained)
    params = load_autoencoder(path, jax.eval_shape(experiment.init_params))
    with first_before_others():
        find_data(experiment, folder)
    if any(found.name.isdigit() for found in (folder / "checkpoints").glob("*")):  # ignores what a killed save left
        _, state = restore(AutoencoderExperiment, workdir, config)
        fix = f"{folder} holds another autoencoder; use another workdir"
        require(weights_hash(state.ema_params) == weights_hash(jax.tree.map(jnp.asarray, params)),
                "autoencoder.pretrained", path, fix)  # fmt: skip
        return
    if is_first():
        make_folder(folder, "--workdir")
    state = create(lambda: params, experiment.optimizer)
    state = jax.tree.map(lambda leaf: sharding.put_replicated(np.asarray(leaf), experiment.mesh), state)
    with only_trainer(folder), Checkpointer(folder, keep=1) as checkpointer:
        if is_first():
            configs.write(config, folder)
        checkpointer.save(state, config.to_dict(), {})
    logger.info("%s has the weights of %s", folder, path)


def measure(workdir: Path, experiment: AutoencoderExperiment) -> None:
    """Writes the mean and deviation of each latent channel, and the PSNR of reconstructions, to latents.json.

    An earlier measurement of the same weights is kept, because a run may have learnt with it.
    """
    made, state = restore(AutoencoderExperiment, workdir, experiment.config)
    folder, channels = workdir / experiment.section, made.latent_shape[-1]
    if read_latents(folder, state, channels):
        return
    codec = made.codec_of(state.ema_params, [0.0] * channels, [1.0] * channels)
    about = {"weights_sha256": weights_hash(state.ema_params), "step": int(state.step), "data": made.info.name}
    with first_before_others():
        train = datasets.open_split(experiment.source, "train")
    about |= statistics(codec, train)
    dead = [i for i, std in enumerate(about["std"]) if not std > 0]
    if dead:
        raise UserError(f"{folder}: channels {dead} of the latents are constant; use fewer autoencoder.channels")
    try:
        about |= reconstructed(codec, datasets.open_split(experiment.source, "test"), folder)
    except datasets.NoSplitError as error:
        logger.warning("the autoencoder is trained, but its quality cannot be measured: %s", error)
    if is_first():
        write_json(folder / LATENTS_JSON, about)


def statistics(codec: Codec, train: Records) -> dict[str, Any]:
    """Returns the mean and standard deviation of each latent channel, over all positions in the measured images."""
    encode, count, images = jax.jit(codec.encode), 0, 0
    total = squares = np.float64(0)
    for batch in measured(train, "training image"):
        latents = whole(encode(codec.weights, to_float(batch))).astype(np.float64)
        total, squares = total + latents.sum((0, 1, 2)), squares + np.square(latents).sum((0, 1, 2))
        count, images = count + latents[..., 0].size, images + len(batch)
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(squares / count - mean**2).tolist(), "images": images}


def reconstructed(codec: Codec, test: Records, folder: Path) -> dict[str, Any]:
    """Returns the PSNR of reconstructed test images, over all of their values; pictures the first reconstructions."""
    again = jax.jit(lambda weights, x: codec.decode(weights, codec.encode(weights, x)))
    squares, values, images, rows = 0.0, 0, 0, []
    for batch in measured(test, "test image"):
        decoded = to_uint8(whole(again(codec.weights, to_float(batch))))
        rows = rows or [batch[:COLUMNS], decoded[:COLUMNS]]
        squares += np.square(decoded.astype(np.float64) - batch).sum()
        values, images = values + batch.size, images + len(batch)
    decibels = float(10 * np.log10(255**2 * values / squares)) if squares else math.inf
    result = {"psnr_db": decibels if squares else None, "psnr_n": images, "psnr_split": "test"}
    if is_first():
        labels = np.repeat([0, 1], len(rows[0]))
        save_png(folder / "reconstructions.png", label_grid(np.concatenate(rows), labels, ("image", "decoded")), result)
    logger.info("autoencoder: test images are reconstructed with a PSNR of %.1f dB (n = %d)", decibels, images)
    return result


def measured(records: Records, unit: str) -> Iterator[np.ndarray]:
    """Yields images spread evenly over a split, MEASURED and PIXELS at most, in batches: uint8 [any, H, W, C]."""
    height, width, _ = records.image_shape
    most = max(1, min(MEASURED, PIXELS // (height * width)))
    index = np.unique(np.linspace(0, records.count - 1, most).astype(int))
    size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
    with Progress(len(index), unit) as progress:
        for first in range(0, len(index), size):
            yield records.read(index[first : first + size]).images
            progress.update(min(first + size, len(index)))
