from math import cos, pi, sin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.embeddings import (
    ClassEmbedding,
    Embed,
    TimeEmbedding,
    axis_frequencies,
    patchify,
    position_table,
    rows_of,
    sinusoid,
    unpatchify,
)


def test_patch_pixels_by_hand():
    """A 2 x 4 image of two 2 x 2 patches, two channels: pixel (row, column) holds (10 row + column, its negative)."""
    image = np.array([[[10 * r + c, -(10 * r + c)] for c in range(4)] for r in range(2)])
    left = [0, 0, 1, -1, 10, -10, 11, -11]
    right = [2, -2, 3, -3, 12, -12, 13, -13]
    np.testing.assert_array_equal(patchify(jnp.asarray(image)[None], 2), [[left, right]])


def test_patches_are_in_reading_order():
    image = np.arange(4 * 6).reshape(1, 4, 6, 1)
    first_pixels = patchify(jnp.asarray(image), 2)[0, :, 0]
    np.testing.assert_array_equal(first_pixels, [0, 2, 4, 12, 14, 16])


@pytest.mark.parametrize(("shape", "patch"), [((8, 8, 3), 2), ((4, 12, 1), 4), ((12, 4, 5), 2)])
def test_unpatchify_is_the_inverse(shape, patch):
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    patches = patchify(jnp.asarray(x), patch)
    assert patches.shape == (2, shape[0] * shape[1] // patch**2, patch**2 * shape[2])
    np.testing.assert_array_equal(unpatchify(patches, patch, shape), x)


def test_sinusoid_by_hand():
    """Width 4: frequencies 1 and 10,000^(-1/2) = 0.01, cosines first as in the DiT code."""
    expected = [[1, 1, 0, 0], [cos(3), cos(0.03), sin(3), sin(0.03)], [cos(999), cos(9.99), sin(999), sin(9.99)]]
    out = sinusoid(jnp.array([0, 3, 999]), 4)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_sinusoid_tells_all_timesteps_apart():
    rows = np.asarray(sinusoid(jnp.arange(1000)))
    assert rows.shape == (1000, 256)
    assert np.abs(np.diff(rows, axis=0)).max(axis=1).min() > 0.1


def mae_positions(height, width, features):
    """A peer written from MAE's and DiT's `get_2d_sincos_pos_embed`, one position at a time (w goes first there)."""

    def one_axis(position, size):
        angles = [position / 10_000 ** (i / (size / 2)) for i in range(size // 2)]
        return [sin(a) for a in angles] + [cos(a) for a in angles]

    half = features // 2
    return np.array([one_axis(w, half) + one_axis(h, half) for h in range(height) for w in range(width)])


@pytest.mark.parametrize(("height", "width", "features"), [(8, 8, 384), (2, 5, 32), (16, 16, 1152)])
def test_positions_equal_maes(height, width, features):
    table = position_table(height, width, features)
    assert table.dtype == np.float32
    assert table.shape == (height * width, features)
    np.testing.assert_allclose(table, mae_positions(height, width, features), atol=1e-6)


def test_grid_frequencies_by_hand():
    """Eight patches: wavelengths 16, 8, 4 and 2 patches."""
    np.testing.assert_allclose(axis_frequencies("grid", 4, 8), [pi / 8, pi / 4, pi / 2, pi], rtol=1e-12)


def test_grid_positions_by_hand():
    """2 x 4 patches: wavelengths 8 and 2 along the columns, 4 and 2 along the rows; patch 6 is row 1, column 2."""
    column = [sin(2 * pi / 4), sin(2 * pi), cos(2 * pi / 4), cos(2 * pi)]
    row = [sin(pi / 2), sin(pi), cos(pi / 2), cos(pi)]
    np.testing.assert_allclose(position_table(2, 4, 8, "grid")[6], column + row, atol=1e-6)


@pytest.mark.parametrize("kind", ["mae", "grid"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (2, 7), (7, 2), (1, 4), (16, 16)])
@pytest.mark.parametrize("features", [4, 32])
def test_no_two_positions_are_alike(kind, height, width, features):
    table = position_table(height, width, features, kind).astype(np.float64)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(height * width)
    assert distance.min() > 1e-2


def test_time_embedding_is_a_two_layer_mlp_of_the_sinusoid():
    layer = TimeEmbedding(8, "silu", jax.nn.initializers.normal(0.02), jnp.float32)
    t = jnp.array([0, 5, 999])
    params = layer.init(jax.random.key(0), t)["params"]
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = np.asarray(sinusoid(t)) @ first["kernel"] + np.asarray(first["bias"])[None]
    expected = (hidden / (1 + np.exp(-hidden))) @ second["kernel"] + np.asarray(second["bias"])[None]
    np.testing.assert_allclose(layer.apply({"params": params}, t), expected, atol=1e-5)


def test_class_table_has_a_last_row_for_no_class():
    layer = ClassEmbedding(10, 16, 0, jnp.float32)
    labels = jnp.array([0, 9, 10])
    params = layer.init(jax.random.key(0), labels)
    (table,) = jax.tree.leaves(params)
    assert table.shape == (11, 16)
    np.testing.assert_array_equal(layer.apply(params, labels), table[np.array([0, 9, 10])])


def test_rows_for_an_mlp_are_drawn_from_n_0_1():
    """As in PyTorch's `nn.Embedding`, which the report uses."""
    init = jax.jit(ClassEmbedding(999, 8, 64, jnp.float32).init)
    table = np.asarray(init(jax.random.key(0), jnp.zeros(1, int))["params"]["Embed_0"]["embedding"])
    assert table.mean() == pytest.approx(0, abs=0.02)  # 64,000 values: five standard errors
    assert table.std() == pytest.approx(1, abs=0.015)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="patches of 3 do not divide images of 6 x 8"):
        patchify(jnp.zeros((1, 6, 8, 3)), 3)
    with pytest.raises(ValueError, match="width 5; use an even one"):
        sinusoid(jnp.arange(3), 5)


def test_the_gradient_of_rows_is_that_of_looking_them_up_and_no_scatter():
    """A row that is looked up twice gets the sum; one that is never looked up gets 0."""
    table, index = jnp.arange(20.0).reshape(5, 4), jnp.array([3, 1, 3, 4])
    weight = jax.random.normal(jax.random.key(0), (4, 4))
    np.testing.assert_array_equal(rows_of(table, index), np.asarray(table)[np.asarray(index)])
    grad = jax.grad(lambda table: (rows_of(table, index) * weight).sum())
    expected = np.zeros((5, 4), np.float32)
    np.add.at(expected, np.asarray(index), np.asarray(weight))
    np.testing.assert_allclose(grad(table), expected, rtol=1e-6)
    assert "scatter" not in jax.jit(grad).lower(table).as_text()
    embed = Embed(5, 4)
    params = embed.init(jax.random.key(0), index)
    assert jax.tree.map(jnp.shape, params) == {"params": {"embedding": (5, 4)}}
    np.testing.assert_array_equal(embed.apply(params, index), params["params"]["embedding"][index])
