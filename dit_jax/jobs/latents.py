"""Provides what a run trains on: the images of its data or, with `model.latents`, their latents."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from dit_jax.companions.autoencoder import most_at_once
from dit_jax.data import latents, pipeline, preparation
from dit_jax.data.datasets import Records
from dit_jax.errors import EndedError, UserError
from dit_jax.experiment import Experiment, pass_size
from dit_jax.models.autoencoder import Codec
from dit_jax.system.progress import Progress
from dit_jax.system.stop import Stop
from dit_jax.system.together import first_before_others, whole
from dit_jax.training import sharding

logger = logging.getLogger(__name__)
VERSION = 1  # of how latents are made and stored


def training_records(experiment: Experiment, images: Records, probe: list[Any], stop: Stop) -> Records:
    """Returns what training reads of a split: the split itself, or its latents, which are encoded now if necessary.

    `probe` identifies the split. The latents are stored in DATA_DIR/latents, for every run with this autoencoder; the
    first process encodes for all processes that see the same folder, on its own devices.

    Raises:
      UserError: the autoencoder was not loaded, or there is no room for its latents.
      EndedError: see `encode_to`.
    """
    config = experiment.config
    if not config.model.latents:
        return images
    codec, flip = experiment.codec, config.data.flip
    shape = (2, *experiment.x_shape) if flip else experiment.x_shape
    of = [VERSION, config.autoencoder.sha256, config.data.name, config.data.content, images.image_shape, shape, probe]
    name = f"{config.data.name}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}"
    folder = preparation.check_data_dir(config.data.data_dir) / "latents" / name
    with first_before_others():
        if latents.missing(folder, images.count, shape):
            with preparation.only_one(folder, latents.HALF_MADE):
                encoder = make_encoder(codec, experiment.mesh, images.image_shape, shape, flip)
                encode_to(folder, images, encoder, stop)
        return latents.open_kept(folder, images.count, shape)


def encode_to(folder: Path, images: Records, encoder: latents.Encoder, stop: Stop) -> None:
    """Runs `latents.keep`: checks the free space first, shows the progress, and ends early if asked to.

    Raises:
      UserError: there is not enough room.
      EndedError: a signal arrived, or `stop`'s time limit had passed when a part was complete.
    """
    todo = latents.missing(folder, images.count, encoder.shape)
    if not todo:
        return  # another run made them while this one waited for it
    needed, free = latents.nbytes(todo, encoder.shape), shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 2**30:.2f} GiB, but only {free / 2**30:.2f} GiB are free"
        raise UserError(f"latents in {folder} need {sizes}: make room, or use another data.data_dir")
    logger.info("encoding %d images as latents (only once, %.2f GiB) in %s", todo, needed / 2**30, folder)

    def leave(asked: bool) -> None:
        if asked:
            kept = images.count - latents.missing(folder, images.count, encoder.shape)
            line = f"latents of {kept} of {images.count} images are kept in {folder}; the same command resumes the run"
            raise EndedError(stop.code, line)

    def told(done: int) -> None:
        progress.update(done)
        leave(stop.code > 0)

    busy, before = stop.busy_with("a batch of latents"), images.count - todo
    with stop, busy, Progress(images.count, "image", initial=before) as progress:
        stop.listen()
        latents.keep(images, folder, encoder, told, lambda: leave(stop.out_of_time()))


def make_encoder(
    codec: Codec, mesh: Mesh, image_shape: tuple[int, ...], shape: tuple[int, ...], flip: bool
) -> latents.Encoder:
    """Returns an encoder on the devices of this process, which with `flip` also encodes the mirrored images."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    mesh = jax.make_mesh((len(own),), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=own)
    weights = jax.tree.map(lambda leaf: sharding.put_replicated(whole(leaf), mesh), codec.weights)
    most = most_at_once(image_shape)
    size = min(most, pass_size(most * len(own), mesh)) * len(own)

    def per_device(weights: Any, images: jax.Array) -> jax.Array:
        x = pipeline.to_float(images)
        both = [x, x[:, :, ::-1]] if flip else [x]
        found = [codec.encode(weights, each) for each in both]
        return jnp.stack(found, 1) if flip else found[0]

    specs = {"in_specs": (sharding.REPLICATED, sharding.SPLIT), "out_specs": sharding.SPLIT}
    call: Callable[..., jax.Array] = jax.jit(jax.shard_map(per_device, mesh=mesh, check_vma=False, **specs))

    def encode(images: np.ndarray) -> np.ndarray:
        return np.asarray(call(weights, np.resize(images, (size, *image_shape))))[: len(images)]

    return latents.Encoder(encode, shape, size)
