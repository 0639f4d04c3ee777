"""The sampling tasks, each a function of one batch: draw(denoise, schedule, plan, keys_B, shape, *inputs).

Inputs are arrays with one entry per image, so that any batch can be split over devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion import editing, sampling
from dit_jax.diffusion.guidance import Denoiser
from dit_jax.diffusion.sampling import Plan
from dit_jax.diffusion.schedule import Schedule

Draw = Callable[..., jax.Array]
Shape = tuple[int, ...]  # of one image


def generate(denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape) -> jax.Array:
    """Draws images from noise: [B, H, W, C]."""
    return sampling.sample(denoise, plan, sampling.start(schedule, plan, keys_B, shape), keys_B)


def from_noise(
    denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape, x_T: jax.Array
) -> jax.Array:
    """Runs a plan from the given noise x_T [B, H, W, C]; with `editing.ddim_inverse`, from images to noise."""
    del schedule, shape
    return sampling.sample(denoise, plan, x_T, keys_B)


def image_to_image(strength: float) -> Draw:
    """Returns the task that varies images [B, H, W, C], more with greater `strength`; its plan is of `last_steps`."""

    def draw(
        denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape, images: jax.Array
    ) -> jax.Array:
        del shape
        begin = editing.image_to_image_start(schedule, plan, images, keys_B, strength)
        return sampling.sample(denoise, plan, begin, keys_B)

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
    """Redraws the pixels of images [B, H, W, C] that are not `known` (bool [B, H, W, 1])."""
    del shape
    return editing.inpaint(denoise, schedule, plan, images, known, keys_B)


def denoising(watched: np.ndarray) -> Draw:
    """Returns the task that records x_t and predicted x_0 at `watched` rows, then the image: [B, 2, F, H, W, C]."""

    def draw(denoise: Denoiser, schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: Shape) -> jax.Array:
        begin = sampling.start(schedule, plan, keys_B, shape)
        return jnp.stack(sampling.trajectory(denoise, plan, begin, keys_B, watched), axis=1)

    return draw
