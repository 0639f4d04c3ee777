"""Skips steps whose loss or gradient is not finite; they are counted on the devices and reported at log points.

The state never takes such a step, so no checkpoint can contain one. Too many in a row end the run.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.objective import QUARTERS
from dit_jax.errors import UserError
from dit_jax.training.state import TrainState

logger = logging.getLogger(__name__)
Counts = dict[str, jax.Array]


def zero_counts(bad_run: int = 0) -> Counts:
    """Returns the counts at the start of a window of steps, after `bad_run` bad steps in a row."""
    return {
        "bad_steps": jnp.zeros(()),
        "bad_quarters": jnp.zeros(QUARTERS),  # bad steps whose loss was not finite in this quarter of the noise
        "last_bad_step": jnp.zeros((), jnp.int32),
        "bad_run": jnp.int32(bad_run),  # bad steps in a row up to now
        "longest_bad_run": jnp.int32(bad_run),
    }


def take(good: jax.Array, update: Callable[[TrainState], TrainState], old: TrainState) -> TrainState:
    """Returns `update(old)` or, if `good` is false, `old` at the next step: the data advance, the weights stay."""
    on_cpu = partial(jax.lax.cond, good, update, skip)  # there, a select would copy the whole state, twice
    return jax.lax.platform_dependent(old, cpu=on_cpu, default=partial(select, good, update))


def skip(old: TrainState) -> TrainState:
    """Returns `old` at the next step."""
    return TrainState(old.step + 1, old.params, old.ema_params, old.opt_state)


def select(good: jax.Array, update: Callable[[TrainState], TrainState], old: TrainState) -> TrainState:
    """Does what `take` does without a branch, for which a GPU would wait for the host."""
    return jax.tree.map(partial(jnp.where, good), update(old), skip(old))


def tally(good: jax.Array, metrics: Counts) -> Counts:
    """Returns a step's metrics with its counts; a bad step's metrics are 0, so that they cannot spoil a mean."""
    counted = jax.tree.map(lambda value: jnp.where(good, value, 0), metrics)
    bad = 1 - good.astype(jnp.float32)
    return counted | {"bad_steps": bad, "bad_quarters": bad * ~jnp.isfinite(metrics["quarter_loss"])}


def add(sums: Counts, metrics: Counts, step: jax.Array) -> Counts:
    """Returns the sums with the metrics of step number `step` added."""
    bad = metrics["bad_steps"] > 0
    bad_run = jnp.where(bad, sums["bad_run"] + 1, 0)
    return {name: sums[name] + metrics[name] for name in metrics} | {
        "last_bad_step": jnp.where(bad, step, sums["last_bad_step"]),
        "bad_run": bad_run,
        "longest_bad_run": jnp.maximum(sums["longest_bad_run"], bad_run),
    }


def describe(host: dict[str, np.ndarray], section: str) -> str:
    """Returns `3 up to step 1,234, with noise of quarter 2, 3 of 4`, say, from sums in host memory."""
    quarters = [str(i + 1) for i in np.flatnonzero(host["bad_quarters"])]
    where = f", with noise of quarter {', '.join(quarters)} of {QUARTERS}" if quarters else ", in the gradient alone"
    if quarters and section == "autoencoder":  # it sees no noise
        where = ""
    return f"{int(host['bad_steps']):,} up to step {int(host['last_bad_step']):,}{where}"


def rate_key(section: str) -> str:
    """Returns the config key of the learning rate for the network that a section of the config trains."""
    return f"{'optimizer' if section == 'train' else section}.learning_rate"


def check(sums: Counts, most: int, section: str = "train") -> None:
    """Reads the counts from the devices; ends a run that had `most` bad steps in a row. `section` is `Pace`'s.

    Raises:
      UserError: says what happened and what to lower.
    """
    counts: Any = jax.device_get({name: sums[name] for name in sums if "bad" in name})
    if counts["longest_bad_run"] >= most:
        other = ", or use model.dtype=float32" if section == "train" else ""  # the other networks are float32
        raise UserError(
            f"{int(counts['longest_bad_run']):,} steps in a row had a loss or gradient that is not finite "
            f"({describe(counts, section)}; train.max_bad_steps={most}): lower {rate_key(section)}{other}; "
            "the checkpoints hold finite weights"
        )


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Returns whether every number of a state is finite, a bool scalar."""
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]))


def check_state(state: TrainState, section: str = "train") -> None:
    """Refuses weights that overflowed in an update whose gradient was finite.

    Raises:
      UserError: says at which step, and what to lower.
    """
    if not is_finite(state):
        raise UserError(
            f"the weights at step {int(state.step):,} are not finite, and are not saved: lower {rate_key(section)}"
        )


def warn(host: dict[str, np.ndarray], section: str = "train") -> None:
    """Logs a warning if there were bad steps."""
    if host["bad_steps"]:
        logger.warning("steps skipped because the loss or gradient was not finite: %s", describe(host, section))
