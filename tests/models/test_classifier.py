"""The classifier: each image is seen alone, and time and pixels reach the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.classifier import Classifier


@pytest.fixture(scope="module")
def network():
    """Logits of (x, t) with random weights throughout; those of the last convolutions start at zero."""
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
