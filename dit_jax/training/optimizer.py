"""AdamW with warm-up, decay, clipping, and weight decay on matrices other than the class table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

Schedule = Callable[[Any], Any]  # step -> learning rate
SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(schedule: str, peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Returns a schedule that rises to `peak` in `warmup_steps`, then stays or (`cosine`) falls to 0 at `total_steps`.

    The rise is linear, and its first step already moves: step k takes peak (k + 1) / warmup_steps.
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
    """Returns whether weight decay applies to a parameter: it does to matrices, not to biases or the class table."""
    return leaf.ndim >= 2 and path[-1].key != "embedding"


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to the norm `limit`. `update` takes their norm as `grad_norm`, or computes it.

    A device that holds only a share of the gradients cannot compute it. Source: Pascanu et al. 2013, algorithm 1.
    """

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any) -> Any:
        length = optax.tree.norm(updates) if grad_norm is None else grad_norm
        short = length < limit
        return jax.tree.map(lambda g: jax.lax.select(short, g, g / length * limit), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def adamw(
    learning_rate: Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2019, eps 1e-8) after clipping to a global norm, unless `clip_norm` is 0."""
    clip = clip_by_norm(clip_norm) if clip_norm else optax.identity()
    mask = partial(jax.tree_util.tree_map_with_path, decays)
    return optax.chain(clip, optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask))
