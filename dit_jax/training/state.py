"""The train state, which checkpoints store, and the average of the weights in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any  # a tree of float32 arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: int32 scalar, the steps done; params, ema_params: float32 trees of one structure; opt_state: optax's."""

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def create(init_params: Callable[[], Params], optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the EMA starts at the parameters, which its ramp soon forgets."""
    params = init_params()
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))


def ema_rate(step: jax.Array, batch_size: int, half_life: float, ramp: float) -> jax.Array:
    """Returns how far the average moves after `step` steps: 1 - 0.5^(batch_size / half_life), in 0..1.

    The half-life is in images. Early on it is at most `ramp` times the images seen, so that the start is forgotten in
    time.
    Source: Karras et al. 2022, its training code (half-life 500,000 images and ramp 0.05 on CIFAR-10).
    """
    images = step.astype(jnp.float32) * batch_size
    half_lives = batch_size / jnp.maximum(jnp.minimum(half_life, ramp * images), 1e-6)
    return -jnp.expm1(-np.log(2).astype(np.float32) * half_lives)  # 1 - 0.5^... would lose the digits of a slow average


def update_ema(ema_params: Params, params: Params, rate: jax.Array) -> Params:
    """Returns (1 - rate) * ema + rate * params, leaf by leaf."""
    return jax.tree.map(lambda ema, p: ema + rate * (p - ema), ema_params, params)
