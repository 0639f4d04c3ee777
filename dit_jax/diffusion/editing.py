"""Beyond plain sampling: noise from an image, between two noises, from a partial noise level, and around a mask.

All are per image: keys, images [B, H, W, C] and masks can be split over devices along B. Plans are sampling.py's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.guidance import Denoiser
from dit_jax.diffusion.sampling import Plan, image_noise, is_stochastic, levels, make_plan, sample, start
from dit_jax.diffusion.schedule import Schedule


def ddim_inverse(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    """`ddim` backwards: `sample(denoise, plan, images, keys)` is the noise at timesteps[0] that `ddim` draws them from.

    Each step is x_s = alpha_s x_0 + sigma_s eps to the next noisier level. No timestep is clean data: the first step
    takes the image itself for x_0, and eps as the network sees it at the least noise visited.
    Source: DDIM (Song et al. 2021), section 4.3 and equation 13, Euler's method run from data to noise.
    """
    rising = timesteps[::-1]
    first = np.arange(len(rising)) == 0
    alpha, sigma = schedule.alpha[rising], schedule.sigma[rising]
    return make_plan(np.append(rising[:1], rising[:-1]), x=first * alpha, x_0=~first * alpha, eps=sigma)


def slerp(a: jax.Array, b: jax.Array, weight: jax.Array | float) -> jax.Array:
    """From noise a (weight 0) to noise b (weight 1) along the arc between them, which keeps their length.

    a, b [B, H, W, C]; weight in [0, 1], one number or [B]. Noises that point the same way, or opposite ways, are mixed
    linearly: between them is no arc, or no single one.
    Source: Shoemake 1985; DDIM (Song et al. 2021), equation 67.
    """
    axes = (1, 2, 3)
    weight = jnp.broadcast_to(jnp.asarray(weight, a.dtype), a.shape[:1])[:, None, None, None]
    length = lambda x: jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))  # noqa: E731
    cosine = (a * b).sum(axes, keepdims=True) / (length(a) * length(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = jnp.sin(angle) < 1e-4
    sine = jnp.where(straight, 1, jnp.sin(angle))
    of_a = jnp.where(straight, 1 - weight, jnp.sin((1 - weight) * angle) / sine)
    of_b = jnp.where(straight, weight, jnp.sin(weight * angle) / sine)
    return of_a * a + of_b * b


def last_steps(timesteps: np.ndarray, strength: float) -> np.ndarray:
    """The share `strength`, in (0, 1], of the timesteps that is left from a partial noise level: at least the last."""
    return timesteps[-max(1, round(strength * len(timesteps))) :]


def noised(schedule: Schedule, plan: Plan, images: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Images at the level where a plan starts, with the noise of `start`: alpha x_0 + sigma eps [B, H, W, C].

    Image-to-image: `sample` from here, with the plan of `last_steps`; all of them and `start` instead at strength 1.
    Source: SDEdit (Meng et al. 2022), algorithm 1.
    """
    t = plan.t[0]
    return float(schedule.alpha[t]) * images + float(schedule.sigma[t]) * image_noise(keys_B, 0, images.shape[1:])


def image_to_image_start(
    schedule: Schedule, plan: Plan, images: jax.Array, keys_B: jax.Array, strength: float
) -> jax.Array:
    """Where image-to-image begins: the noised images, or at strength 1 plain sampling's noise, without any trace."""
    if strength == 1:
        return start(schedule, plan, keys_B, images.shape[1:])
    return noised(schedule, plan, images, keys_B)


def inpaint(
    denoise: Denoiser, schedule: Schedule, plan: Plan, images: jax.Array, known: jax.Array, keys_B: jax.Array
) -> jax.Array:
    """Draws the pixels that are not `known` (bool [B, H, W, 1]) to fit those of `images` [B, H, W, C] that are.

    Before every row the known pixels are replaced by themselves at that row's noise level, and at the end by
    themselves. Their noise is the row's draw; for a plan without noise that of the start, so that they keep to one
    trajectory.
    Source: Song et al. 2021 (score SDE), appendix I.2; RePaint (Lugmayr et al. 2022), equation 8, not resampled.
    """
    shape = images.shape[1:]
    begin = jnp.where(known, noised(schedule, plan, images, keys_B), start(schedule, plan, keys_B, shape))
    _, _, alpha, sigma = (jnp.asarray(table, jnp.float32) for table in levels(schedule, plan.t))  # where rows end

    def amend(x: jax.Array, draw: jax.Array) -> jax.Array:
        noise = image_noise(keys_B, draw if is_stochastic(plan) else 0, shape)
        return jnp.where(known, alpha[draw - 1] * images + sigma[draw - 1] * noise, x)

    return sample(denoise, plan, begin, keys_B, amend)
