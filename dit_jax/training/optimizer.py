"""AdamW with warm-up, decay, clipping, and weight decay on matrices only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

Schedule = Callable[[Any], Any]  # the learning rate by step
SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(schedule: str, peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Rises linearly to `peak` in `warmup_steps`, then stays (`constant`) or falls to 0 at `total_steps` (`cosine`).

    The first step of a warm-up already moves: step k of it takes peak (k + 1) / warmup_steps.
    """
    rest = (
        optax.constant_schedule(peak)
        if schedule == "constant"
        else optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    )
    if warmup_steps == 0:
        return rest
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, rest], [warmup_steps])


def decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether weight decay applies to a parameter: to matrices, not to biases nor to the class table."""
    return leaf.ndim >= 2 and path[-1].key != "embedding"


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to the length `limit`. `update` takes their length as `grad_norm`, or works it out.

    A device that holds a share of the gradients does not know it. Source: Pascanu et al. 2013, algorithm 1.
    """

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any) -> Any:
        length = optax.tree.norm(updates) if grad_norm is None else grad_norm
        short = length < limit
        return jax.tree.map(lambda g: jax.lax.select(short, g, g / length * limit), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def adamw(
    learning_rate: Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, eps 1e-8) on gradients clipped to a global norm; clip_norm 0 is no clipping."""
    clip = clip_by_norm(clip_norm) if clip_norm else optax.identity()
    mask = partial(jax.tree_util.tree_map_with_path, decays)
    return optax.chain(clip, optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask))
