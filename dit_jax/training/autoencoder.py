"""The autoencoder's loss: each image's squared error, plus the KL divergence of its latents from N(0, I)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dit_jax.data import pipeline
from dit_jax.diffusion import objective
from dit_jax.training.state import Params
from dit_jax.training.step import Batch, LossAndQuarters


def batch_loss(
    apply: Callable[..., Any],
    flip: bool,
    latent_shape: tuple[int, int, int],
    kl_weight: float,
    params: Params,
    batch: Batch,
) -> LossAndQuarters:
    """Returns the mean loss of a device's images, and its (sums, counts), which put all images in the first quarter.

    An image's loss is its mean squared error plus `kl_weight` times its latents' KL in nats, divided by the number of
    values in the image: up to a factor, beta-VAE's bound with a Gaussian decoder (Higgins et al. 2017). Rombach et al.
    2022 use a weight of 1e-6.
    """
    x_0, draw = batch.x_0, jax.vmap(partial(jax.random.split, num=2))(batch.keys_B)
    if flip:
        x_0 = pipeline.flip(x_0, draw[:, 0])
    eps = jax.vmap(lambda key: jax.random.normal(key, latent_shape))(draw[:, 1])
    output = apply(params, x_0, eps)
    loss_B = jnp.square(output.images - x_0).mean((1, 2, 3)) + kl_weight * output.kl_B / x_0[0].size
    return loss_B.mean(), objective.by_quarter(loss_B, jnp.zeros(len(x_0), jnp.int32), objective.QUARTERS)
