"""Provides what a new run starts with: fresh weights, or those of another run (fine-tuning)."""

import logging
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.loading import load
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.system.files import expanded
from dit_jax.training import sharding
from dit_jax.training.state import Params, TrainState

logger = logging.getLogger(__name__)
# If these keys differ, what the network has learnt to read or to predict has another meaning.
MEANING = ("model.latents", "autoencoder.sha256", "model.num_heads", "model.num_kv_heads", "model.positions",
           "model.qk_norm", "diffusion.prediction", "diffusion.schedule", "diffusion.num_steps",
           "diffusion.beta_start", "diffusion.beta_end", "diffusion.zero_terminal_snr")  # fmt: skip
# Overrides that load the newest averaged weights of the other run, and no classifier, however it is sampled.
AS_NEWEST = ("sample.checkpoint=newest", "sample.weights=ema", "sample.classifier_scale=0")


def check_source(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError, before anything is prepared, if a new run's `train.init_from` names no run to start from."""
    path = config.train.init_from
    if path and not any((workdir / "checkpoints").glob("[0-9]*")):
        other, fix = expanded(path), "there is no run; use a workdir that has a config.json and checkpoints"
        there = configs.path_of(other).is_file() and any((other / "checkpoints").glob("[0-9]*"))
        require(there, "train.init_from", path, fix)


def first_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step: fresh weights or, with `train.init_from`, another run's averaged ones.

    Parameters that the other run lacks, or has in another shape, start fresh: the class table for other classes, say.

    Raises:
      UserError: the other run cannot be read, or none of its weights fits.
    """
    path = experiment.config.train.init_from
    if not path:
        return experiment.init_state()
    try:
        source = load(path, overrides=AS_NEWEST)
    except UserError as error:
        raise UserError(f"train.init_from={path}: {error}") from None
    warn_of_other_meaning(source.experiment, experiment, path)
    fresh = jax.jit(experiment.init_params, out_shardings=sharding.replicated(experiment.mesh))()
    params, left = taken_over(fresh, source.ema_params)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    share = 1 - sum(left.values()) / count(params)
    require(share > 0, "train.init_from", path, "none of its weights fit this model; use the model.* keys of that run")
    rest = f", all but {', '.join(left)}" if left else ""
    tenths = math.floor(1000 * share) / 10  # rounded down: 100% means all
    logger.info("starting from the weights of %s at step %d (%.1f%%%s)", path, source.step, tenths, rest)
    return experiment.init_state(params)


def taken_over(fresh: Params, given: Params) -> tuple[Params, dict[str, int]]:
    """Returns (`fresh` with the leaves of `given` that match in path and shape, {name: size} of the other leaves)."""
    there, left = dict(jax.tree_util.tree_leaves_with_path(given)), {}

    def take(path: Any, leaf: jax.Array) -> jax.Array:
        if path in there and there[path].shape == leaf.shape:
            return there[path]
        left["/".join(key.key for key in path[1:])] = leaf.size
        return leaf

    return jax.tree_util.tree_map_with_path(take, fresh), left


def warn_of_other_meaning(theirs: Experiment, ours: Experiment, path: str) -> None:
    """Logs a warning if the other run's network has learnt another task than this one is to learn."""
    before, now = (dict(configs.leaves(each.config)) for each in (theirs, ours))
    changed = [f"{key}: {before[key]} -> {now[key]}" for key in MEANING if before[key] != now[key]]
    old, new = theirs.info.class_names, ours.info.class_names
    if len(old) == len(new) and old != new:  # otherwise the class table starts fresh, which is told anyway
        changed.append("its classes have other names, or another order")
    if changed:
        told = "train.init_from=%s was trained for another task (%s): its weights will help less"
        logger.warning(told, path, "; ".join(changed))
