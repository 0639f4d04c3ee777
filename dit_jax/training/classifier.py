"""What the classifier is trained on: images at every noise level, and clean ones among them."""

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

CLEAN_SHARE = 0.75  # of a batch's images: features are taken from clean ones


def batch_loss(
    apply: Callable[..., Any], schedule: Schedule, flip: bool, crop_padding: int, params: Params, batch: Batch
) -> LossAndQuarters:
    """Mean cross-entropy in nats of a device's images, and (sums, counts) of it by noise quarter.

    An image also draws where it is moved to (`crop_padding`). `CLEAN_SHARE` of them have t = 0 and
    no noise. Of the others t is T times the square of a uniform number, half of it in the first quarter: where there is
    more noise, there is little left to learn.
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
