"""The sampling tasks, and what they are made of.

A task is a function of one batch: draw(denoise, schedule, plan, keys_B, shape, *inputs). Beyond plain sampling there
are DDIM inversion, interpolation between noises, image-to-image and inpainting. Inputs are arrays with one entry per
image, and a task works per image, so that any batch can be split over devices. Plans are those of sampling.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion import sampling
from dit_jax.diffusion.guidance import Denoiser
from dit_jax.diffusion.sampling import Plan, image_noise
from dit_jax.diffusion.schedule import Schedule

Draw = Callable[..., jax.Array]
Shape = tuple[int, ...]  # of one image


def generate(denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape) -> jax.Array:
    """Draws images from noise: [B, H, W, C]."""
    return sampling.sample(denoise, plan, sampling.start(schedule, plan, keys_B, shape), keys_B)


def from_noise(
    denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape, x_T: jax.Array
) -> jax.Array:
    """Runs a plan from the given noise x_T [B, H, W, C]; with that of `ddim_inverse`, from images to noise."""
    del schedule, shape
    return sampling.sample(denoise, plan, x_T, keys_B)


def ddim_inverse(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    """Returns the plan of `ddim` in reverse: `from_noise` then maps images to the noise that `ddim` draws them from.

    The noise is at timesteps[0]. Each step is x_s = alpha_s x_0 + sigma_s eps to the next noisier level. As no timestep
    is clean data, the first step takes the image itself as x_0, and eps as predicted at the least noisy timestep.
    Source: DDIM (Song et al. 2021), section 4.3 and equation 13, Euler's method run from data to noise.
    """
    rising = timesteps[::-1]
    first = np.arange(len(rising)) == 0
    alpha, sigma = schedule.alpha[rising], schedule.sigma[rising]
    return sampling.make_plan(np.append(rising[:1], rising[:-1]), x=first * alpha, x_0=~first * alpha, eps=sigma)


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
    """Returns images noised to the level where a plan starts, with draw 0 of each key: alpha x_0 + sigma eps."""
    t = plan.t[0]
    return float(schedule.alpha[t]) * images + float(schedule.sigma[t]) * image_noise(keys_B, 0, images.shape[1:])


def image_to_image(strength: float) -> Draw:
    """Returns the task that varies images [B, H, W, C], more with greater `strength`; its plan is of `last_steps`.

    At strength 1 it draws from pure noise without a trace of the images.
    Source: SDEdit (Meng et al. 2022), algorithm 1.
    """

    def draw(
        denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape, images: jax.Array
    ) -> jax.Array:
        if strength == 1:
            return generate(denoise, schedule, plan, keys_B, shape)
        return sampling.sample(denoise, plan, noised(schedule, plan, images, keys_B), keys_B)

    return draw


def inpaint(
    denoise: Denoiser,
    schedule: Schedule,
    plan: Plan,
    keys_B: jax.Array,
    shape: Shape,
    images: jax.Array,
    known: jax.Array,
) -> jax.Array:
    """Draws new pixels for `images` [B, H, W, C] wherever `known` (bool [B, H, W, 1]) is false.

    After every row, the known pixels are reset to those of `images` at the noise level where the row ends; the last row
    ends at clean data. Their noise is the row's draw; a plan without noise uses the noise of the start throughout, so
    that known pixels follow one trajectory.
    Source: Song et al. 2021 (score SDE), appendix I.2; RePaint (Lugmayr et al. 2022), equation 8, not resampled.
    """
    begin = jnp.where(known, noised(schedule, plan, images, keys_B), sampling.start(schedule, plan, keys_B, shape))
    tables = sampling.levels(schedule, plan.t)
    _, _, alpha, sigma = (jnp.asarray(table, jnp.float32) for table in tables)  # at each row's end

    def amend(x: jax.Array, draw: jax.Array) -> jax.Array:
        noise = image_noise(keys_B, draw if sampling.is_stochastic(plan) else 0, shape)
        return jnp.where(known, alpha[draw - 1] * images + sigma[draw - 1] * noise, x)

    return sampling.sample(denoise, plan, begin, keys_B, amend)


def denoising(watched: np.ndarray) -> Draw:
    """Returns the task that records x_t and predicted x_0 at `watched` rows, then the image: [B, 2, F, H, W, C]."""

    def draw(denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape) -> jax.Array:
        begin = sampling.start(schedule, plan, keys_B, shape)
        return jnp.stack(sampling.trajectory(denoise, plan, begin, keys_B, watched), axis=1)

    return draw
