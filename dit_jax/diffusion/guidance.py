"""Denoisers: functions (x_t [B, H, W, C], t [B]) -> (x_0, eps), and guidance, which makes one from another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_jax.diffusion.objective import to_x_0_and_eps
from dit_jax.diffusion.schedule import Schedule

Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_t, t_B, labels_B) -> prediction
Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def guided(network: Network, labels_B: jax.Array, null_class: int, scale: float) -> Callable[..., jax.Array]:
    """The network steered towards its labels: uncond + scale (cond - uncond), all channels, in one doubled pass.

    Scale 1 is the plain conditional network and 0 the unconditional one, each in a single pass.
    Source: classifier-free guidance, Ho & Salimans 2022, equation 6 with w = scale - 1.
    """
    null_B = jnp.full_like(labels_B, null_class)
    if scale in (0, 1):
        return lambda x_t, t_B: network(x_t, t_B, labels_B if scale else null_B)
    both_labels = jnp.concatenate([labels_B, null_B])

    def predict(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        both = network(jnp.concatenate([x_t, x_t]), jnp.concatenate([t_B, t_B]), both_labels)
        conditional, unconditional = jnp.split(both, 2)
        return unconditional + scale * (conditional - unconditional)

    return predict


def denoiser(
    predict: Callable[[jax.Array, jax.Array], jax.Array], schedule: Schedule, prediction: str, clip_x_0: bool = False
) -> Denoiser:
    """Reads any prediction as (x_0, eps).

    `clip_x_0` keeps x_0 in [-1, 1] and makes eps agree with it, as DDPM's sampler does (Ho et al. 2020, its code).
    """

    def denoise(x_t: jax.Array, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = predict(x_t, t_B)
        x_0, eps = to_x_0_and_eps(schedule, prediction, output, x_t, t_B)
        if clip_x_0:
            x_0 = jnp.clip(x_0, -1, 1)
            eps = to_x_0_and_eps(schedule, "x0", x_0, x_t, t_B)[1]
        return x_0, eps

    return denoise
