"""The autoencoder's network: its shapes, what its latents are, and that each image is seen alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.autoencoder import Autoencoder, stage_widths


def build(downsample=4, channels=3, width=8, depth=1):
    """(apply, params, x, eps): random weights throughout; `apply` is jitted, by `method`."""
    model = Autoencoder(3, downsample, channels, width, depth)
    x = jax.random.normal(jax.random.key(0), (2, 16, 8, 3))
    eps = jax.random.normal(jax.random.key(1), (2, 16 // downsample, 8 // downsample, channels))
    shapes = jax.eval_shape(model.init, jax.random.key(2), x, eps)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = tree.unflatten([rng.normal(size=leaf.shape, scale=0.2).astype(np.float32) for leaf in leaves])
    return jax.jit(model.apply, static_argnames="method"), params, x, eps


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.mark.parametrize("downsample", [2, 4, 8])
def test_each_stage_halves_the_size(downsample):
    apply, params, x, eps = build(downsample)
    shapes = lambda method, *inputs: jax.eval_shape(partial(apply, method=method), params, *inputs)  # noqa: E731
    mean, log_variance = shapes("moments", x)
    assert mean.shape == log_variance.shape == (2, 16 // downsample, 8 // downsample, 3)
    assert shapes("decode", mean).shape == x.shape
    assert shapes("__call__", x, eps).images.shape == x.shape


def test_stages_are_stable_diffusions():
    """Its VAE has block_out_channels 128, 256, 512, 512; LDM's of downsampling 4 has ch_mult 1, 2, 4."""
    assert stage_widths(128, 8) == (128, 256, 512, 512)
    assert stage_widths(64, 4) == (64, 128, 256)


def test_latents_are_drawn_from_the_moments_and_their_kl_is_a_gaussians(network):
    apply, params, x, eps = network
    mean, log_variance = (np.asarray(moment, np.float64) for moment in apply(params, x, method="moments"))
    std = np.exp(log_variance / 2)
    output = apply(params, x, eps)
    again = apply(params, jnp.asarray(mean + std * np.asarray(eps), jnp.float32), method="decode")
    np.testing.assert_allclose(output.images, again, atol=1e-4)
    kl = -np.log(std) + (std**2 + mean**2) / 2 - 0.5  # of N(mean, std^2) from N(0, 1), by the textbook
    np.testing.assert_allclose(output.kl_B, kl.sum((1, 2, 3)), rtol=1e-4)


def test_variances_stay_finite(network):
    apply, params, x, _ = network
    last = jax.tree.map(lambda leaf: 1e4 * leaf, params["params"]["quant_conv"])
    huge = {"params": params["params"] | {"quant_conv": last}}
    log_variance = np.asarray(apply(huge, x, method="moments")[1])
    assert (log_variance.min(), log_variance.max()) == (-30, 20)


def test_brightness_reaches_the_latents_and_the_images(network):
    """Norms of groups within could lose it; the path around them must not."""
    apply, params, x, _ = network
    mean, _ = apply(params, x, method="moments")
    brighter, _ = apply(params, x + 0.5, method="moments")
    assert np.abs(brighter - mean).max() > 1e-2
    images = [apply(params, z, method="decode") for z in (mean, mean + 0.5)]
    assert np.abs(images[0] - images[1]).max() > 1e-2


def test_no_image_sees_another(network):
    apply, params, x, eps = network
    gradient = np.asarray(jax.jit(jax.grad(lambda x: apply(params, x, eps).images[0].sum()))(x))
    assert np.any(gradient[0] != 0)
    assert not np.any(gradient[1:])
