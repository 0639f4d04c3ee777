"""Inversion, interpolation, image-to-image and inpainting with the analytic denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import PartitionSpec

from dit_jax.diffusion.sampling import SAMPLERS, ddim, ddpm, dpmpp_2m, heun, image_keys, image_noise, sample
from dit_jax.diffusion.schedule import rectified
from dit_jax.diffusion.spacing import linspace
from dit_jax.diffusion.tasks import ddim_inverse, generate, image_to_image, inpaint, last_steps, noised, slerp
from tests import tiny

KEYS = image_keys(jax.random.key(0), jnp.arange(8))
SHAPE = (2, 2, 1)
LEFT = jnp.broadcast_to(jnp.array([True, False])[None, None, :, None], (8, 2, 2, 1))  # the known half


def data(gaussian, n=8):
    z = np.random.default_rng(0).normal(size=(n, *SHAPE))
    return jnp.asarray(gaussian.mean[None] + gaussian.std[None] * z, jnp.float32)


def test_inverse_by_hand():
    """Rectified T = 4 over 3, 1: from the image at (1, 0), with eps as seen at t = 1, to (1/2, 1/2), then to (0, 1)."""
    plan = ddim_inverse(rectified(4), np.array([3, 1]))
    assert plan.t.tolist() == [1, 1]
    np.testing.assert_array_equal(plan.x, [0.5, 0])
    np.testing.assert_array_equal(plan.x_0, [0, 0])
    np.testing.assert_array_equal(plan.eps, [0.5, 1])
    assert ddim_inverse(rectified(1000), linspace(1000, 4)).t.tolist() == [0, 0, 333, 666]


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "rectified", "zero"])
def test_invert_and_regenerate(gaussian, make_tables, name, run_by_hand):
    schedule, t = make_tables(name), linspace(1000, 200)
    images, denoise = data(gaussian, 500), gaussian.denoiser(make_tables(name), "v")
    noise = run_by_hand(denoise, ddim_inverse(schedule, t), images)
    again = run_by_hand(denoise, ddim(schedule, t), noise)
    psnr = 10 * np.log10(2**2 / np.square(again - images).mean())  # of images in [-1, 1]
    assert psnr > 40
    # The noise is also the one from which the exact flow reaches the image.
    assert np.abs(gaussian.end_of(schedule, 999, noise) - images).max() < 0.15


def test_inversion_is_a_plan_like_any_other(gaussian, make_tables, run_by_hand):
    schedule, images = make_tables("rectified"), data(gaussian)
    plan, denoise = ddim_inverse(schedule, linspace(1000, 20)), gaussian.denoiser(make_tables("rectified"), "velocity")
    noise = jax.jit(lambda x: sample(denoise, plan, x, KEYS))(images)
    np.testing.assert_allclose(noise, run_by_hand(denoise, plan, images), atol=1e-4)


def test_slerp_by_hand():
    """Between (2, 0) and (0, 2): at a third, 30 degrees; between two that point the same way, the straight line."""
    a = jnp.array([[2.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 2, 1)
    b = jnp.array([[0.0, 2.0], [3.0, 3.0]]).reshape(2, 1, 2, 1)
    third = slerp(a, b, 1 / 3).reshape(2, 2)
    np.testing.assert_allclose(third, [[3**0.5, 1.0], [5 / 3, 5 / 3]], rtol=1e-5)
    np.testing.assert_allclose(slerp(a, b, jnp.array([0.5, 0.0])).reshape(2, 2), [[2**0.5, 2**0.5], [1, 1]], rtol=1e-5)


def test_slerp_ends_at_its_ends_and_keeps_the_length():
    a, b = (image_noise(KEYS, draw, (8, 8, 3)) for draw in (0, 1))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, rtol=1e-6)
    length = lambda x: np.linalg.norm(np.asarray(x).reshape(8, -1), axis=1)  # noqa: E731
    b = b * jnp.asarray(length(a) / length(b))[:, None, None, None]
    for weight in (0.1, 0.5, 0.8):
        np.testing.assert_allclose(length(slerp(a, b, weight)), length(a), rtol=1e-5)
        np.testing.assert_allclose(slerp(a, b, weight), slerp(b, a, 1 - weight), atol=1e-5)


def test_last_steps_by_hand():
    t = np.arange(9, -1, -1)
    assert last_steps(t, 1.0).tolist() == t.tolist()
    assert last_steps(t, 0.3).tolist() == [2, 1, 0]
    assert last_steps(t, 0.01).tolist() == [0]
    assert len(last_steps(np.arange(100), 0.29)) == 29  # 28.999999999999996 in floats


def test_noised_by_hand():
    """Rectified T = 4 at t = 1: half image, half noise."""
    images = jnp.full((8, *SHAPE), 3.0)
    x = noised(rectified(4), ddim(rectified(4), np.array([1, 0])), images, KEYS)
    np.testing.assert_allclose(x, 1.5 + 0.5 * np.asarray(image_noise(KEYS, 0, SHAPE)), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "rectified"])
def test_strength_1_is_plain_sampling(make_tables, gaussian, name):
    schedule, t = make_tables(name), linspace(1000, 10)
    plan = ddim(schedule, last_steps(t, 1.0))
    assert all(np.array_equal(a, b) for a, b in zip(plan, ddim(schedule, t), strict=True))
    denoise, images = gaussian.denoiser(schedule, "v"), data(gaussian)
    x = image_to_image(1.0)(denoise, schedule, plan, KEYS, SHAPE, images)
    np.testing.assert_array_equal(x, generate(denoise, schedule, plan, KEYS, SHAPE))
    part = ddim(schedule, last_steps(t, 0.5))
    x = image_to_image(0.5)(denoise, schedule, part, KEYS, SHAPE, images)
    np.testing.assert_array_equal(x, sample(denoise, part, noised(schedule, part, images, KEYS), KEYS))


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_image_to_image_keeps_the_law_and_the_less_noise_the_more_of_the_image(
    gaussian, make_tables, strength, run_by_hand
):
    """Noised data has the distribution of x_t, so any strength ends at the data's distribution. The correlation of an
    image with one drawn from its x_t is alpha^2 v / (alpha^2 v + sigma^2).
    """
    schedule, n, rng = make_tables("cosine"), 4000, np.random.default_rng(1)
    images, keys = data(gaussian, n), image_keys(jax.random.key(1), jnp.arange(n))
    plan = ddpm(schedule, last_steps(linspace(1000, 200), strength), "small")
    x = noised(schedule, plan, images, keys)
    out = run_by_hand(gaussian.denoiser(schedule, "v"), plan, x, lambda _: rng.normal(size=x.shape))
    np.testing.assert_allclose(out.mean(0), gaussian.mean, atol=0.1)
    np.testing.assert_allclose(out.std(0), gaussian.std, rtol=0.06)
    signal = (schedule.alpha[plan.t[0]] * gaussian.std) ** 2
    kept = signal / (signal + schedule.sigma[plan.t[0]] ** 2)
    for index in np.ndindex(SHAPE):
        correlation = np.corrcoef(out[:, *index], images[:, *index])[0, 1]
        assert correlation == pytest.approx(kept[index], abs=0.05)


@pytest.mark.parametrize("make", [ddim, dpmpp_2m, heun, lambda *a: ddpm(*a, "small"), lambda *a: ddim(*a, 0.5)],
                         ids=["ddim", "dpmpp_2m", "heun", "ddpm", "eta"])  # fmt: skip
def test_inpainting_keeps_the_known_and_draws_the_rest(gaussian, make_tables, make, run_by_hand):
    """The pixels are independent here, so the drawn ones are those of plain sampling."""
    schedule, images = make_tables("cosine", 100), data(gaussian)
    plan, denoise = make(schedule, linspace(100, 6)), gaussian.denoiser(make_tables("cosine", 100), "v")
    out = jax.jit(lambda x: inpaint(denoise, schedule, plan, KEYS, SHAPE, x, LEFT))(images)
    noise = [np.asarray(image_noise(KEYS, draw, SHAPE)) for draw in range(len(plan.t) + 1)]
    plain = run_by_hand(denoise, plan, noise[0], lambda draw: noise[draw])
    np.testing.assert_array_equal(out[:, :, 0], images[:, :, 0])
    np.testing.assert_allclose(out[:, :, 1], plain[:, :, 1], atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_what_the_network_sees_of_the_known_pixels(sampler):
    """The image at each visited level, with the start's noise if the plan adds none, otherwise with the row's draw."""
    schedule, images, seen = rectified(10), jnp.full((8, *SHAPE), 2.0), []

    def denoise(x, t_B):
        io_callback(lambda x: seen.append(np.array(x)), None, x, ordered=True)
        return x, x

    plan = SAMPLERS[sampler](schedule, np.array([9, 5, 2]), "small", 0.0)
    out = jax.jit(lambda: inpaint(denoise, schedule, plan, KEYS, SHAPE, images, LEFT))()
    jax.effects_barrier()
    for row, t in enumerate((9, 5, 2)):
        noise = np.asarray(image_noise(KEYS, row if sampler == "ddpm" else 0, SHAPE))
        expected = 2.0 * (1 - (t + 1) / 10) + (t + 1) / 10 * noise
        np.testing.assert_allclose(seen[row][:, :, 0], expected[:, :, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[:, :, 0], images[:, :, 0])


def test_nothing_crosses_the_batch(gaussian, make_tables):
    """Inpainting and slerp on eight devices give what one device gives."""
    schedule, images = make_tables("rectified", 50), data(gaussian)
    plan, denoise = ddpm(schedule, linspace(50, 5), "small"), gaussian.denoiser(make_tables("rectified", 50), "v")

    def edit(images, known, keys_B):
        drawn = inpaint(denoise, schedule, plan, keys_B, SHAPE, images, known)
        return slerp(drawn, noised(schedule, plan, images, keys_B), 0.3)

    split = PartitionSpec("data")
    eight = jax.shard_map(edit, mesh=tiny.mesh(8), in_specs=(split, split, split), out_specs=split, check_vma=False)
    np.testing.assert_allclose(jax.jit(eight)(images, LEFT, KEYS), jax.jit(edit)(images, LEFT, KEYS), atol=1e-5)
