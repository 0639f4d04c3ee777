"""Tiny networks for the tests of the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.dit import DiT

TINY = dict(
    num_classes=5,
    patch_size=2,
    width=32,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    qk_norm=False,
    mlp_ratio=4,
    long_skips=False,
    dropout=0.0,
    conditioning="token",
    class_table_width=12,
    positions="mae",
    dtype=jnp.float32,
    remat=False,
)


@pytest.fixture(params=["token", "adaln_zero"])
def conditioning(request):
    return request.param


@pytest.fixture
def make_tiny():
    """Returns make_tiny(**changes) -> a DiT of width 32 and depth 2."""
    return lambda **changes: DiT(**(TINY | changes))


@pytest.fixture
def make_inputs():
    """Returns make_inputs(shape=(8, 8, 3), n=2) -> (x_t, t, labels), all images different."""

    def make(shape=(8, 8, 3), n=2):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, *shape)).astype(np.float32)
        return jnp.asarray(x), jnp.arange(n) * 300 + 40, jnp.arange(n) % 5

    return make


@pytest.fixture
def randomised():
    """Returns randomised(model, inputs) -> parameters without zeros: matrices N(0, 1 / fan-in), biases N(0, 0.1^2)."""

    def make(model, inputs, seed=7):
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        rng = np.random.default_rng(seed)

        def draw(leaf):
            std = leaf.shape[0] ** -0.5 if len(leaf.shape) == 2 else 0.1
            return jnp.asarray(rng.normal(scale=std, size=leaf.shape), leaf.dtype)

        return jax.tree.map(draw, shapes)

    return make
