"""Denoisers, which are functions (x_t [B, H, W, C], t [B]) -> (x_0, eps), and the guidance that steers them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.objective import to_x_0_and_eps
from dit_jax.diffusion.schedule import Schedule, gather

Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_t, t_B, labels_B) -> prediction
Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Logits = Callable[[jax.Array, jax.Array], jax.Array]  # a classifier of noisy images: (x_t, t_B) -> [B, classes]
Shift = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # (x_t, t_B) -> what to add to (x_0, eps)


def guidance_interval(num_steps: int, start: float, end: float) -> np.ndarray:
    """Returns which timesteps are guided, namely those with start <= t / T <= end: bool [T].

    Source: Kynkaanniemi et al. 2024, with the interval in timesteps instead of sigma.
    """
    s = np.arange(num_steps) / num_steps
    return (start <= s) & (s <= end)


def guided(
    network: Network, labels_B: jax.Array, null_class: int, scale: float, interval: np.ndarray | None = None
) -> Callable[..., jax.Array]:
    """Returns the network with classifier-free guidance, uncond + scale (cond - uncond), from one doubled batch.

    Scale 1 is the plain conditional network and 0 the unconditional one; both take a single batch. Timesteps outside of
    `interval` (bool [T]; by default, all are inside) use the conditional network alone. With an interval, all images of
    a batch must be at one timestep, as they are in sampling. Guidance applies to all channels.
    Source: classifier-free guidance, Ho & Salimans 2022, equation 6 with w = scale - 1.
    """
    null_B = jnp.full_like(labels_B, null_class)
    both_labels = jnp.concatenate([labels_B, null_B])

    def conditional(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        return network(x_t, t_B, labels_B)

    def unconditional(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        return network(x_t, t_B, null_B)

    def steered(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        both = network(jnp.concatenate([x_t, x_t]), jnp.concatenate([t_B, t_B]), both_labels)
        with_label, without = jnp.split(both, 2)
        return without + scale * (with_label - without)

    inside = conditional if scale == 1 else steered if scale else unconditional
    if interval is None or interval.all() or scale == 1:
        return inside
    return lambda x_t, t_B: jax.lax.cond(jnp.asarray(interval)[t_B[0]], inside, conditional, x_t, t_B)


def towards_labels(
    logits: Logits, labels_B: jax.Array, schedule: Schedule, scale: float, interval: np.ndarray | None = None
) -> Shift:
    """Returns classifier guidance: it lowers eps by scale sigma grad log p(label | x_t), and raises x_0 to match.

    Scale 1 turns an unconditional network into the conditional one, if network and classifier are exact (Bayes).
    Nothing is shifted for "no class" (a label beyond the classes), outside of `interval` (bool [T]), or where x_t is
    pure noise (alpha 0).
    Source: Dhariwal & Nichol 2021, algorithm 2, which is linear in eps and so serves every sampler.
    """

    def log_likelihood(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits(x_t, t_B))
        return (log_p * jax.nn.one_hot(labels_B, log_p.shape[-1])).sum()

    on = (schedule.alpha > 0) & (True if interval is None else interval)
    to_x_0 = np.divide(schedule.sigma**2, schedule.alpha, where=on, out=np.zeros(schedule.num_steps))

    def shift(x_t: jax.Array, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient = jax.grad(log_likelihood)(x_t, t_B)
        return gather(scale * to_x_0, t_B) * gradient, gather(-scale * on * schedule.sigma, t_B) * gradient

    return shift


def denoiser(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: Schedule,
    prediction: str,
    clip_x_0: bool = False,
    shift: Shift | None = None,
) -> Denoiser:
    """Returns a denoiser that converts any prediction to (x_0, eps) and adds the result of `shift`.

    `clip_x_0` clips x_0 to [-1, 1] and recomputes eps from it, as DDPM's sampler does (Ho et al. 2020, its code).
    """

    def denoise(x_t: jax.Array, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = predict(x_t, t_B)
        x_0, eps = to_x_0_and_eps(schedule, prediction, output, x_t, t_B)
        if shift is not None:
            x_0_more, eps_more = shift(x_t, t_B)
            x_0, eps = x_0 + x_0_more, eps + eps_more
        if clip_x_0:
            x_0 = jnp.clip(x_0, -1, 1)
            eps = to_x_0_and_eps(schedule, "x0", x_0, x_t, t_B)[1]
        return x_0, eps

    return denoise
