"""The DiT's loss: its error in predicting each image's noise (or x_0, v, the velocity) at a random timestep."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.data import pipeline
from dit_jax.diffusion import objective
from dit_jax.diffusion.schedule import Schedule
from dit_jax.training.state import Params
from dit_jax.training.step import Batch, LossAndQuarters


@dataclass(frozen=True)
class Objective:
    """What an image's loss depends on besides the network: its noise, timestep, weight, and the label it is given."""

    schedule: Schedule
    prediction: str
    timestep_sampling: str
    logit_mean: float
    logit_std: float
    stratified_timesteps: bool
    loss_weights: np.ndarray  # [T]
    label_dropout: float
    null_class: int
    flip: bool
    batch_size: int  # over all devices; stratified timesteps are spread over these images


def batch_loss(apply: Callable[..., jax.Array], c: Objective, params: Params, batch: Batch) -> LossAndQuarters:
    """Returns the mean weighted loss of a device's images, and (sums, counts) of the unweighted one by noise quarter.

    `apply(params, x_t, t_B, labels_B, keys_B)` is the network; it draws its dropout from the keys.
    """
    T, x_0 = c.schedule.num_steps, batch.x_0
    draw = jax.vmap(partial(jax.random.split, num=5))(batch.keys_B)
    if c.flip:
        x_0 = pipeline.flip(x_0, draw[:, 0])
    u_B = jax.vmap(jax.random.uniform)(draw[:, 1])
    if c.stratified_timesteps:
        u_B = objective.stratify(u_B, batch.index_B, c.batch_size)
    t_B = objective.timestep_at(u_B, T, c.timestep_sampling, c.logit_mean, c.logit_std)
    eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(draw[:, 2])
    dropped_B = jax.vmap(lambda key: jax.random.bernoulli(key, c.label_dropout))(draw[:, 3])
    seen_B = jnp.where(dropped_B, c.null_class, batch.labels_B)
    predict = lambda x_t, t: apply(params, x_t, t, seen_B, draw[:, 4])  # noqa: E731
    loss_B = objective.diffusion_loss(predict, c.schedule, c.prediction, x_0, eps, t_B)
    weight_B = jnp.asarray(c.loss_weights, jnp.float32)[t_B]
    return (weight_B * loss_B).mean(), objective.by_quarter(loss_B, t_B, T)
