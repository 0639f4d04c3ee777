"""Denoisers: functions (x_t [B, H, W, C], t [B]) -> (x_0, eps), and guidance, which makes one from another."""

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
    """Which timesteps are guided, those with start <= t / T <= end: bool [T].

    Source: Kynkaanniemi et al. 2024, with the interval in timesteps instead of sigma.
    """
    s = np.arange(num_steps) / num_steps
    return (start <= s) & (s <= end)


def guided(
    network: Network, labels_B: jax.Array, null_class: int, scale: float, interval: np.ndarray | None = None
) -> Callable[..., jax.Array]:
    """The network steered towards its labels: uncond + scale (cond - uncond), all channels, in one doubled pass.

    Scale 1 is the plain conditional network and 0 the unconditional one, each in a single pass. So is, with an
    `interval` (bool [T]; the whole range unless given), every timestep outside of it: the conditional network. All
    images of a batch must then be at one timestep, as they are in sampling.
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
    """Classifier guidance: eps goes down by scale sigma grad log p(label | x_t), and x_0 up so that they agree.

    Of an unconditional network, scale 1 makes the conditional one, if both are exact (Bayes). A label beyond the
    classes is "no class" and moves nothing. Where no image is left in x_t (alpha 0), and outside of `interval` (bool
    [T]), nothing moves either.
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
    """Reads any prediction as (x_0, eps), and adds to them what `shift` says.

    `clip_x_0` keeps x_0 in [-1, 1] and makes eps agree with it, as DDPM's sampler does (Ho et al. 2020, its code).
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
