"""The images on the way from noise to a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import tasks
from dit_jax.diffusion.sampling import SAMPLERS, image_keys, image_noise, sample, trajectory
from dit_jax.diffusion.schedule import rectified
from dit_jax.diffusion.spacing import linspace

KEYS = image_keys(jax.random.key(0), jnp.arange(3))


def toward(target):
    """Returns a denoiser that always predicts one image, for the rectified process."""

    def denoise(x_t, t_B):
        s = ((t_B + 1) / 10)[:, None, None, None]
        return jnp.full_like(x_t, target), (x_t - (1 - s) * target) / s

    return denoise


def test_ddim_towards_a_point_is_a_straight_line():
    """x at level s is (1 - s) target + s x_T, and every predicted x_0 is the target."""
    schedule, timesteps = rectified(10), np.array([9, 6, 4, 1])
    x_T = image_noise(KEYS, 0, (2, 2, 1))
    watched = np.array([1, 3])
    x_t, x_0 = trajectory(toward(0.5), SAMPLERS["ddim"](schedule, timesteps, "small", 0.0), x_T, KEYS, watched)
    assert x_t.shape == x_0.shape == (3, 3, 2, 2, 1)
    for frame, s in enumerate((0.7, 0.2)):
        np.testing.assert_allclose(x_t[:, frame], (1 - s) * 0.5 + s * x_T, atol=1e-6)
    np.testing.assert_allclose(x_0, np.full(x_0.shape, 0.5), atol=1e-6)
    np.testing.assert_allclose(x_t[:, 2], np.full((3, 2, 2, 1), 0.5), atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_watching_changes_nothing(name, gaussian):
    schedule = rectified(1000)
    plan = SAMPLERS[name](schedule, linspace(1000, 7), "small", 0.0)
    denoise, x_T = gaussian.denoiser(schedule, "velocity"), image_noise(KEYS, 0, (2, 2, 1))
    x_t, x_0 = trajectory(denoise, plan, x_T, KEYS, np.array([0, 2, 5]))
    np.testing.assert_array_equal(x_t[:, 0], x_T)
    np.testing.assert_array_equal(x_0[:, -1], sample(denoise, plan, x_T, KEYS))


def test_the_pictured_image_is_the_sampled_one(gaussian):
    schedule = rectified(1000)
    denoise, shape = gaussian.denoiser(schedule, "velocity"), (2, 2, 1)
    plan = SAMPLERS["dpmpp_2m"](schedule, linspace(1000, 5), "small", 0.0)
    seen = tasks.denoising(np.array([0, 4]))(denoise, schedule, plan, KEYS, shape)
    assert seen.shape == (3, 2, 3, *shape)
    np.testing.assert_array_equal(seen[:, 0, -1], tasks.generate(denoise, schedule, plan, KEYS, shape))
    np.testing.assert_allclose(seen[:, 0, 0], image_noise(KEYS, 0, shape))  # x_t comes first and begins as noise
