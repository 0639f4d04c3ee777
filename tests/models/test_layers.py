from math import erf, sqrt, tanh

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.layers import ACTIVATIONS, Dense, layer_norm


def test_layer_norm_by_hand():
    """Mean 3, variance 8/3; a constant row becomes zeros and not NaN thanks to eps."""
    expected = np.array([-2, 0, 2]) / sqrt(8 / 3 + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.array([1.0, 3.0, 5.0])), expected, rtol=1e-6)
    np.testing.assert_array_equal(layer_norm(jnp.full((2, 4), 7.0)), np.zeros((2, 4)))


def test_layer_norm_eps_is_one_millionth():
    """Values +-1e-3 have variance 1e-6, so eps halves it: x / sqrt(2e-6)."""
    np.testing.assert_allclose(layer_norm(jnp.array([1e-3, -1e-3])), [sqrt(0.5), -sqrt(0.5)], rtol=1e-5)


def test_layer_norm_is_float32_for_any_input():
    """2^9 +- 2 is exact in bfloat16; its mean and spread would not be."""
    out = layer_norm(jnp.array([512, 516], jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, [-1, 1], rtol=1e-5)


def test_gelu_is_the_tanh_form():
    x = 1.7
    by_hand = 0.5 * x * (1 + tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert abs(by_hand - 0.5 * x * (1 + erf(x / sqrt(2)))) > 1e-5  # so the two forms can be told apart
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.float32(x)), by_hand, rtol=1e-6)


def test_silu_by_hand():
    np.testing.assert_allclose(ACTIVATIONS["silu"](jnp.float32(2.0)), 2 / (1 + np.exp(-2)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_is_x_kernel_plus_bias_in_float32(dtype):
    x = jnp.array([[1.0, 2.0, 3.0]])
    kernel = jnp.array([[1.0, 0.5], [0.0, -1.0], [2.0, 4.0]])
    out = Dense(2, dtype).apply({"params": {"kernel": kernel, "bias": jnp.array([0.25, 10.0])}}, x)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [[7.25, 20.5]])


def test_dense_starts_xavier_uniform_with_zero_bias():
    """Bound sqrt(6 / (in + out)), so variance bound^2 / 3 (Glorot & Bengio 2010, equation 16)."""
    params = Dense(300, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 200)))["params"]
    bound = sqrt(6 / 500)
    kernel = np.asarray(params["kernel"])
    assert bound * 0.99 < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.03)
    assert not np.asarray(params["bias"]).any()
