from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models import inception
from dit_jax.models.inception import BLOCKS, Inception, Mixed, average_pool, halve, resize


@pytest.fixture(scope="module")
def shapes():
    """Returns the shapes of outputs, variables and intermediates for 5 images, without computing anything."""
    image = jax.ShapeDtypeStruct((5, 32, 40, 3), jnp.uint8)
    watched = partial(Inception().init_with_output, mutable=True, capture_intermediates=True)
    return jax.eval_shape(watched, jax.random.key(0), image)


def test_features_are_2048_and_logits_1008_in_float32(shapes):
    features, logits, unbiased = shapes[0]
    assert (features.shape, logits.shape, unbiased.shape) == ((5, 2048), (5, 1008), (5, 1008))
    assert features.dtype == logits.dtype == jnp.float32


def test_number_of_parameters(shapes):
    """Keras publishes 23,817,352 trainable ones for InceptionV3 (no scale in its batch norms), with 1000 classes.

    Eight more classes have 2048 weights and a bias each. torchvision's 23,834,568, without the auxiliary head, also
    include a scale for each of 17,216 channels.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes[1]["params"]))
    assert count == 23_817_352 + 8 * 2049 == 23_834_568 - 17_216 + 8 * 2049


STEM = {"Conv2d_1a_3x3": 149, "Conv2d_2a_3x3": 147, "Conv2d_2b_3x3": 147, "Conv2d_3b_1x1": 73, "Conv2d_4a_3x3": 71}


def test_only_the_third_convolution_of_the_stem_is_padded(shapes):
    """Sides of Szegedy et al. 2016, table 1, for images of 299."""
    seen = {name: shapes[1]["intermediates"][name]["__call__"][0].shape for name in STEM}
    assert {name: shape[1:3] for name, shape in seen.items()} == {name: (side, side) for name, side in STEM.items()}
    assert shapes[1]["intermediates"]["Mixed_5b"]["__call__"][0].shape == (5, 35, 35, 256)


def test_pixels_are_taken_as_less_128_over_128(monkeypatch):
    """With a stem that passes on the first channel, 192 gives 0.5, 255 gives 127 / 128, and below 128 ReLUs give 0.

    Source: the graph's own subtraction and multiplication; others divide by 127.5.
    """
    monkeypatch.setattr(inception, "resize", lambda images: images.astype(jnp.float32))
    monkeypatch.setattr(inception, "BLOCKS", {})
    images = jnp.broadcast_to(jnp.array([0, 192, 255], jnp.uint8)[:, None, None, None], (3, 27, 27, 3))
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    for name in STEM:
        kernel = variables["params"][name]["kernel"]
        variables["params"][name]["kernel"] = kernel.at[kernel.shape[0] // 2, kernel.shape[1] // 2, 0, 0].set(1)
    features = jax.jit(Inception().apply)(variables, images).features
    np.testing.assert_array_equal(features[:, 0], [0, 0.5, 127 / 128])


@pytest.mark.parametrize(
    ("name", "side", "inputs", "expected"),
    [
        ("Mixed_5b", 35, 192, (35, 35, 256)),
        ("Mixed_6a", 35, 288, (17, 17, 768)),
        ("Mixed_6b", 17, 768, (17, 17, 768)),
        ("Mixed_7a", 17, 768, (8, 8, 1280)),
        ("Mixed_7c", 8, 2048, (8, 8, 2048)),
    ],
)
def test_blocks_have_the_papers_shapes(name, side, inputs, expected):
    """Szegedy et al. 2016, table 1."""
    image = jax.ShapeDtypeStruct((1, side, side, inputs), jnp.float32)
    out, _ = jax.eval_shape(Mixed(BLOCKS[name]).init_with_output, jax.random.key(0), image)
    assert out.shape == (1, *expected)


def test_average_pool_leaves_padding_out():
    """3 x 3 pixels 1..9: the corner is the mean of 1, 2, 4, 5; the centre that of all."""
    image = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    out = average_pool(image)[0, :, :, 0]
    assert out[0, 0] == 3
    assert out[0, 1] == pytest.approx(3.5)
    assert out[1, 1] == pytest.approx(5)
    np.testing.assert_allclose(average_pool(jnp.ones((1, 4, 4, 1))), 1, rtol=1e-6)


def test_halving_takes_whole_windows():
    """5 x 5 pixels 0..24: windows at 0 and 2 have their maxima at rows and columns 2 and 4."""
    out = halve(jnp.arange(25.0).reshape(1, 5, 5, 1))
    np.testing.assert_array_equal(out[0, :, :, 0], [[12, 14], [22, 24]])
    assert halve(jnp.zeros((1, 6, 6, 1))).shape == (1, 2, 2, 1)


@pytest.mark.parametrize(("name", "corner"), [("Mixed_7b", 3.0), ("Mixed_7c", 5.0)])
def test_only_the_last_block_pools_by_the_maximum(name, corner):
    """Pixels 1..9, with a pooling branch that copies: 3 is the mean of 1, 2, 4, 5, and 5 their maximum.

    Source: pytorch-fid's FIDInceptionE_1 and FIDInceptionE_2.
    """
    image = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    block = Mixed(BLOCKS[name])
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(block.init, jax.random.key(0), image))
    variables["params"]["branch_pool"]["kernel"] = jnp.ones((1, 1, 1, 192))
    out = jax.jit(block.apply)(variables, image)
    np.testing.assert_allclose(out[0, 0, 0, -192:], corner)
    np.testing.assert_array_equal(out[0, 0, 0, :-192], 0)


def test_resize_enlarges_as_tensorflow_1():
    """2 to 4 pixels: at positions 0, 0.5, 1 and 1.5, with the last pixel repeated. (Torch's are 0, 0.25, ...)"""
    image = jnp.array([[10.0, 20], [50, 100]]).reshape(1, 2, 2, 1)
    out = resize(image, 4)[0, :, :, 0]
    np.testing.assert_array_equal(out[0], [10, 15, 20, 20])
    np.testing.assert_array_equal(out[:, 0], [10, 30, 50, 50])
    assert out[1, 1] == (10 + 20 + 50 + 100) / 4


def test_resize_shrinks_without_smoothing():
    """3 to 2 pixels: positions 0 and 1.5; 4 to 2: positions 0 and 2, so the other pixels have no effect."""
    np.testing.assert_array_equal(resize(jnp.array([1.0, 5, 8]).reshape(1, 1, 3, 1), 2)[0, 0, :, 0], [1, 6.5])
    np.testing.assert_array_equal(resize(jnp.array([1.0, 5, 8, 9]).reshape(1, 1, 4, 1), 2)[0, 0, :, 0], [1, 8])


def test_resize_to_the_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, size=(2, 29, 29, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize(jnp.asarray(image), 29), image)
