"""The classifier: images do not affect each other, but time and every pixel affect the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.classifier import Classifier, ResidualBlock

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def network():
    """Returns (jitted apply, x, t) with all weights random; fresh ones are zero in each block's last convolution."""
    model = Classifier(num_classes=4, width=8, depth=2)
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 3)), jnp.array([0, 5, 9])
    shapes = jax.eval_shape(model.init, jax.random.key(1), x, t)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = tree.unflatten([rng.normal(size=leaf.shape, scale=0.1).astype(np.float32) for leaf in leaves])
    return jax.jit(lambda x, t: model.apply(params, x, t)), x, t


def test_features_are_32_and_logits_one_a_class(network):
    apply, x, t = network
    output = apply(x, t)
    assert output.features.shape == (3, 32)
    assert output.logits.shape == (3, 4)


def test_time_and_every_pixel_reach_the_logits(network):
    apply, x, t = network
    assert np.all(np.any(apply(x, t).logits != apply(x, t + 1).logits, axis=1))
    gradient = jax.grad(lambda x: apply(x, t).logits[:, 0].sum())(x)
    assert np.all(gradient != 0)


def test_no_image_sees_another(network):
    apply, x, t = network
    gradient = np.asarray(jax.grad(lambda x: apply(x, t).logits[0].sum())(x))
    assert np.any(gradient[0] != 0)
    assert not np.any(gradient[1:])


def test_the_output_of_a_new_block_is_its_shortcut_after_norm_and_activation():
    """He et al. 2016b, figure 4e, with a size that halves; a new block's last convolution is zero."""
    x = np.random.default_rng(0).normal(2, 3, (2, 4, 4, 8)).astype(np.float32)
    block, time = ResidualBlock(16, 2), jnp.ones((2, 5))
    params = jax.jit(block.init)(jax.random.key(0), x, time)
    mean, variance = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))  # the 8 channels are one group
    normal = (x - mean) / np.sqrt(variance + 1e-6)
    active = normal / (1 + np.exp(-normal))
    expected = active[:, ::2, ::2] @ np.asarray(params["params"]["shortcut"]["kernel"])
    np.testing.assert_allclose(jax.jit(block.apply)(params, x, time), expected, atol=1e-4)
