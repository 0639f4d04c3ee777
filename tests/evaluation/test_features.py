"""What the feature networks are given, and which of their outputs are used; the networks are stubs."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.evaluation import features
from dit_jax.models.inception import InceptionOutput
from tests import tiny

COUNT = 150  # two whole batches and a part of one
IMAGES = np.stack([np.arange(COUNT), 255 - np.arange(COUNT)], 1).astype(np.uint8).reshape(COUNT, 1, 2, 1)
PIXELS = IMAGES.reshape(COUNT, 2).astype(np.float64)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_classifier_sees_each_image_once_in_order_in_minus_1_to_1_at_t_0(devices):
    def apply(params, x, t):
        return params + x.reshape(len(x), 2), jnp.stack([t, jnp.full(len(x), len(x))], 1)

    found = features.classifier_features(apply, jnp.ones((1, 2)), tiny.mesh(devices))
    seen, told = found.extract(IMAGES)
    np.testing.assert_allclose(seen, 1 + PIXELS / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(told, np.tile([0, 64 // devices], (COUNT, 1)))  # 64 at a time, over the devices
    assert found.name == "classifier"


def test_inception_sees_bytes_and_its_scores_are_of_logits_without_bias(monkeypatch):
    def apply(variables, images):
        x = variables["scale"] * images.reshape(len(images), 2).astype(jnp.float32)
        return InceptionOutput(features=x, logits=x + 1000, unbiased_logits=-x)

    monkeypatch.setattr(features, "Inception", lambda: SimpleNamespace(apply=apply))
    monkeypatch.setattr(features, "load_inception", lambda path: {"scale": {"the file": 2.0}[path]})
    found = features.inception_features("the file", tiny.mesh(8))
    seen, logits = found.extract(IMAGES)
    np.testing.assert_array_equal(seen, 2 * PIXELS)
    np.testing.assert_array_equal(logits, -2 * PIXELS)
    assert found.name == "inception"


def test_a_batch_is_rounded_up_to_fill_the_devices():
    """Three devices take 66 images at a time; the last 18 of 150 are padded to that size."""
    found = features.make_extract(lambda _, images: (jnp.full((len(images), 1), len(images)), images), (), tiny.mesh(3))
    sizes, images = found(IMAGES)
    np.testing.assert_array_equal(sizes, np.full((COUNT, 1), 22))
    np.testing.assert_array_equal(images, IMAGES)


def test_the_hash_of_weights_depends_on_names_shapes_and_types_too():
    """All of these are sixteen zero bytes."""
    trees = [{"a": jnp.zeros(4)}, {"b": jnp.zeros(4)}, {"a": jnp.zeros((2, 2))}, {"a": jnp.zeros(4, jnp.int32)}]
    trees += [{"a": jnp.zeros(2), "b": jnp.zeros(2)}, {"a": {"b": jnp.zeros(4)}}]
    assert len({features.weights_hash(tree) for tree in trees}) == len(trees)
    assert features.weights_hash({"a": jnp.zeros(4)}) == features.weights_hash(trees[0])
