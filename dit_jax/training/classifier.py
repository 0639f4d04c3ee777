"""The classifier's loss, on images at every noise level and on clean ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dit_jax.data import pipeline
from dit_jax.diffusion import objective
from dit_jax.diffusion.schedule import Schedule, q_sample
from dit_jax.training.state import Params
from dit_jax.training.step import Batch, LossAndQuarters

CLEAN_SHARE = 0.75  # of the images on average: features are taken from clean images


def batch_loss(
    apply: Callable[..., Any], schedule: Schedule, flip: bool, crop_padding: int, params: Params, batch: Batch
) -> LossAndQuarters:
    """Returns the mean cross-entropy of a device's images in nats, and its (sums, counts) by noise quarter.

    With `crop_padding`, images are also shifted at random (`pipeline.crop`). A share of `CLEAN_SHARE`, on average, has
    t = 0 and no noise. For the others, t is T times the square of a uniform number, which puts half of them in the
    first quarter: from noisier images there is little to learn.
    """
    T, x_0 = schedule.num_steps, batch.x_0
    draw = jax.vmap(partial(jax.random.split, num=5))(batch.keys_B)
    if flip:
        x_0 = pipeline.flip(x_0, draw[:, 0])
    if crop_padding:
        x_0 = pipeline.crop(x_0, draw[:, 4], crop_padding)
    uniform_B = jax.vmap(jax.random.uniform)(draw[:, 1])
    t_B = jnp.minimum(T * uniform_B**2, T - 1).astype(jnp.int32)
    eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(draw[:, 2])
    clean_B = jax.vmap(lambda key: jax.random.bernoulli(key, CLEAN_SHARE))(draw[:, 3])
    t_B = jnp.where(clean_B, 0, t_B)
    x_t = jnp.where(clean_B[:, None, None, None], x_0, q_sample(schedule, x_0, eps, t_B))
    loss_B = optax.softmax_cross_entropy_with_integer_labels(apply(params, x_t, t_B).logits, batch.labels_B)
    return loss_B.mean(), objective.by_quarter(loss_B, t_B, T)
