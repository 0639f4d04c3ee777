"""Beyond plain sampling: DDIM inversion, interpolation between noises, image-to-image and inpainting.

Every function works per image, so keys, images [B, H, W, C] and masks can be split over devices along B. Plans are
those of sampling.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.guidance import Denoiser
from dit_jax.diffusion.sampling import Plan, image_noise, is_stochastic, levels, make_plan, sample, start
from dit_jax.diffusion.schedule import Schedule


def ddim_inverse(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    """Returns the plan of `ddim` in reverse, with which `sample` maps images to the noise that `ddim` draws them from.

    The noise is at timesteps[0]. Each step is x_s = alpha_s x_0 + sigma_s eps to the next noisier level. As no timestep
    is clean data, the first step takes the image itself as x_0, and eps as predicted at the least noisy timestep.
    Source: DDIM (Song et al. 2021), section 4.3 and equation 13, Euler's method run from data to noise.
    """
    rising = timesteps[::-1]
    first = np.arange(len(rising)) == 0
    alpha, sigma = schedule.alpha[rising], schedule.sigma[rising]
    return make_plan(np.append(rising[:1], rising[:-1]), x=first * alpha, x_0=~first * alpha, eps=sigma)


def slerp(a: jax.Array, b: jax.Array, weight: jax.Array | float) -> jax.Array:
    """Interpolates from noise a (weight 0) to noise b (weight 1) along the arc between them, which keeps their norm.

    a, b [B, H, W, C]; weight in [0, 1], one number or [B]. Noises in the same or in opposite directions are mixed
    linearly, as there is no arc between them, or no unique one.
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
    """Returns the last timesteps: a share `strength`, in (0, 1], of all, but at least one."""
    return timesteps[-max(1, round(strength * len(timesteps))) :]


def noised(schedule: Schedule, plan: Plan, images: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Returns images noised to the level where a plan starts, with draw 0 of each key: alpha x_0 + sigma eps.

    Image-to-image runs `sample` from here with the plan of `last_steps` (but see `image_to_image_start` on strength 1).
    Source: SDEdit (Meng et al. 2022), algorithm 1.
    """
    t = plan.t[0]
    return float(schedule.alpha[t]) * images + float(schedule.sigma[t]) * image_noise(keys_B, 0, images.shape[1:])


def image_to_image_start(
    schedule: Schedule, plan: Plan, images: jax.Array, keys_B: jax.Array, strength: float
) -> jax.Array:
    """Returns x where image-to-image begins: noised images, or at strength 1 pure noise without a trace of them."""
    if strength == 1:
        return start(schedule, plan, keys_B, images.shape[1:])
    return noised(schedule, plan, images, keys_B)


def inpaint(
    denoise: Denoiser, schedule: Schedule, plan: Plan, images: jax.Array, known: jax.Array, keys_B: jax.Array
) -> jax.Array:
    """Draws new pixels for `images` [B, H, W, C] wherever `known` (bool [B, H, W, 1]) is false.

    After every row, the known pixels are reset to those of `images` at the noise level where the row ends; the last row
    ends at clean data. Their noise is the row's draw; a plan without noise uses the noise of the start throughout, so
    that known pixels follow one trajectory.
    Source: Song et al. 2021 (score SDE), appendix I.2; RePaint (Lugmayr et al. 2022), equation 8, not resampled.
    """
    shape = images.shape[1:]
    begin = jnp.where(known, noised(schedule, plan, images, keys_B), start(schedule, plan, keys_B, shape))
    _, _, alpha, sigma = (jnp.asarray(table, jnp.float32) for table in levels(schedule, plan.t))  # at each row's end

    def amend(x: jax.Array, draw: jax.Array) -> jax.Array:
        noise = image_noise(keys_B, draw if is_stochastic(plan) else 0, shape)
        return jnp.where(known, alpha[draw - 1] * images + sigma[draw - 1] * noise, x)

    return sample(denoise, plan, begin, keys_B, amend)
