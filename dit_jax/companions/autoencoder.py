"""The autoencoder of a workdir: an experiment with another network and loss, and the codec of a trained one."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit_jax.companions.base import companion_config, restore
from dit_jax.errors import UserError
from dit_jax.evaluation.features import weights_hash
from dit_jax.experiment import Experiment
from dit_jax.models.autoencoder import Autoencoder, AutoencoderOutput, Codec
from dit_jax.settings.checks import latent_shape, require
from dit_jax.system.together import whole
from dit_jax.training import sharding
from dit_jax.training.autoencoder import batch_loss
from dit_jax.training.state import Params, TrainState
from dit_jax.training.step import Loss
from dit_jax.workdir import begun

AT_ONCE = 2**20  # the most pixels that a device encodes or decodes at a time, but at least one image
LARGEST = 1e30  # limit for a latent's mean and deviation; float32 ends at 3e38
LATENTS_JSON = "latents.json"  # what `--mode=train_autoencoder` measures of the latents at its end


class AutoencoderExperiment(Experiment):
    """The autoencoder of a config from `autoencoder_config`, with all that `run_training` asks of an experiment."""

    section: ClassVar[str] = "autoencoder"

    @cached_property
    def model(self) -> Autoencoder:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The network, without parameters."""
        c, channels = self.config.autoencoder, self.info.image_shape[-1]
        return Autoencoder(channels, c.downsample, c.channels, c.width, c.depth)

    def apply(self, params: Params, x: jax.Array, eps: jax.Array) -> AutoencoderOutput:  # pyright: ignore
        """Returns the decoded images, and the KL of their latents."""
        return cast(AutoencoderOutput, self.model.apply(params, x, eps))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of an image's latents, (h, w, c)."""
        return latent_shape(self.config.autoencoder, self.info.image_shape)

    def init_params(self) -> Params:
        """Returns fresh parameters, float32."""
        one = (jnp.zeros((1, *shape)) for shape in (self.info.image_shape, self.latent_shape))
        return self.model.init(self.keys[0], *one)

    def loss(self, apply: Callable[..., Any]) -> Loss:
        """Returns the autoencoder's loss."""
        c = self.config
        return partial(batch_loss, apply, c.data.flip, self.latent_shape, c.autoencoder.kl_weight)

    def codec_of(self, params: Params, mean: Sequence[float], std: Sequence[float]) -> Codec:
        """Returns a codec whose latents are the network's means, less `mean` and divided by `std` (per channel, [c]).

        It encodes with full float32 products, where GPUs would use TF32, because latents are kept for every machine.
        """
        most = most_at_once(self.info.image_shape)

        @jax.default_matmul_precision("highest")
        def encode(weights: Any, x: jax.Array) -> jax.Array:
            moments = lambda x: cast(Any, self.model.apply(weights["params"], x, method="moments"))  # noqa: E731
            latents, _ = in_parts(moments, most, x)
            return (latents - weights["mean"]) / weights["std"]

        def decode(weights: Any, z: jax.Array) -> jax.Array:
            if z.ndim > 4:  # a trajectory, [B, ..., h, w, c]: one frame per image at a time, to save memory
                frames = jnp.moveaxis(z.reshape(len(z), -1, *z.shape[-3:]), 1, 0)
                images = jnp.moveaxis(jax.lax.map(partial(decode, weights), frames), 0, 1)
                return images.reshape(*z.shape[:-3], *images.shape[-3:])
            images = lambda z: cast(jax.Array, self.model.apply(weights["params"], z, method="decode"))  # noqa: E731
            return in_parts(images, most, z * weights["std"] + weights["mean"])

        as_channels = lambda values: np.asarray(values, np.float32)[None, None, None]  # noqa: E731
        weights = {"params": jax.tree.map(whole, params), "mean": as_channels(mean), "std": as_channels(std)}
        return Codec(encode, decode, jax.tree.map(partial(sharding.put_replicated, mesh=self.mesh), weights))


def most_at_once(image_shape: Sequence[int]) -> int:
    """Returns how many images [H, W, C] have at most `AT_ONCE` pixels in all; at least 1."""
    return max(1, AT_ONCE // (image_shape[0] * image_shape[1]))


def in_parts(network: Callable[[jax.Array], Any], most: int, x: jax.Array) -> Any:
    """Returns network(x [B, ...]), a tree of arrays [B, ...], computed in equal parts of at most `most` in turn.

    The last part is padded. Stable Diffusion's decoder takes 160 MB for an image of 256 x 256 pixels.
    """
    count = -(-len(x) // most)
    if count == 1:
        return network(x)
    size = -(-len(x) // count)
    parts = jnp.concatenate([x, x[: count * size - len(x)]]).reshape(count, size, *x.shape[1:])
    found = jax.lax.map(network, parts)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[: len(x)], found)


def autoencoder_config(config: ConfigDict) -> ConfigDict:
    """Returns a run's config as that of its autoencoder, with `autoencoder.*` in the places where training looks."""
    return companion_config(config, AutoencoderExperiment.section, weight_decay=0.0)


def with_codec(workdir: Path, config: ConfigDict) -> Experiment:
    """Returns the experiment of a run in `workdir`; with `model.latents` it has the workdir's autoencoder.

    The autoencoder's settings, and the SHA-256 of all that makes its latents, are then stored in the config.

    Raises:
      UserError: there is no trained autoencoder, it has other latents, or it is not the one the run has learnt with.
    """
    if not config.model.latents:
        return Experiment(config)
    experiment, state = restore(AutoencoderExperiment, workdir, config)
    folder, made = workdir / experiment.section, experiment.config.autoencoder
    for key in ("downsample", "channels"):
        fix = f"{folder} has {made[key]}; use that, or train another in another workdir"
        require(config.autoencoder[key] == made[key], f"autoencoder.{key}", config.autoencoder[key], fix)
    about = read_latents(folder, state, made.channels)
    if about is None:
        raise UserError(f"{folder} is not fully trained; first run --mode=train_autoencoder --workdir {workdir}")
    codec = experiment.codec_of(state.ema_params, about["mean"], about["std"])
    learnt, sha256 = learnt_with(workdir), weights_hash(codec.weights)
    fix = f"the run was trained on latents of {learnt[:12]}...; restore that autoencoder and its {LATENTS_JSON}"
    require(learnt in ("", sha256), f"{folder}: weights", f"{sha256[:12]}...", fix)
    config.autoencoder.update(made)
    config.autoencoder.sha256 = sha256
    return Experiment(config, codec)


def learnt_with(workdir: Path) -> str:
    """Returns the SHA-256 of the autoencoder whose latents the run in `workdir` has learnt; empty before it begins."""
    known = begun(workdir)
    return known.autoencoder.sha256 if known else ""


def read_latents(folder: Path, state: TrainState, channels: int) -> dict[str, Any] | None:
    """Returns latents.json, or None if it is missing, damaged or not measured with the averaged weights of `state`."""
    about = read_about(folder)
    try:
        mean, std = (np.asarray(about[key], np.float64) for key in ("mean", "std"))
        same = about["weights_sha256"] == weights_hash(state.ema_params)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    sound = mean.shape == std.shape == (channels,) and bool((np.abs(mean) < LARGEST).all() and (std < LARGEST).all())
    return about if same and sound and bool((std > 0).all()) else None


def measured_step(folder: Path) -> int:
    """Returns the autoencoder's step at which latents.json was measured; 0 if it does not say."""
    step = read_about(folder).get("step")
    return step if isinstance(step, int) else 0


def read_about(folder: Path) -> dict[str, Any]:
    """Returns the object in latents.json; an empty one if there is none."""
    try:
        about = json.loads((folder / LATENTS_JSON).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
