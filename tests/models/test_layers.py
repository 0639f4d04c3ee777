from functools import partial
from math import erf, sqrt, tanh

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import core as jaxpr_core

from dit_jax.models.layers import (
    ACTIVATIONS,
    Conv3x3,
    Dense,
    biased,
    convolve,
    convolve_as_product,
    layer_norm,
    matmul,
    phi,
)


def test_layer_norm_by_hand():
    """Mean 3, variance 8/3; a constant row becomes zeros and not NaN thanks to eps."""
    expected = np.array([-2, 0, 2]) / sqrt(8 / 3 + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.array([1.0, 3.0, 5.0])), expected, rtol=1e-6)
    np.testing.assert_array_equal(layer_norm(jnp.full((2, 4), 7.0)), np.zeros((2, 4)))


def test_layer_norm_is_over_the_last_axis_of_any_number_of_axes():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 5, 8))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_eps_is_one_millionth():
    """Values +-1e-3 have variance 1e-6, so eps halves it: x / sqrt(2e-6)."""
    np.testing.assert_allclose(layer_norm(jnp.array([1e-3, -1e-3])), [sqrt(0.5), -sqrt(0.5)], rtol=1e-5)


def test_layer_norm_is_float32_for_any_input():
    """512 and 516 are exact in bfloat16, but their mean, 514, is not."""
    out = layer_norm(jnp.array([512, 516], jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, [-1, 1], rtol=1e-5)


def test_gelu_is_the_tanh_form():
    x = 1.7
    by_hand = 0.5 * x * (1 + tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert abs(by_hand - 0.5 * x * (1 + erf(x / sqrt(2)))) > 1e-5  # so the two forms can be told apart
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.float32(x)), by_hand, rtol=1e-6)


def written_out_norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_the_norms_gradient_is_that_which_jax_derives():
    x, weight = jax.random.normal(jax.random.key(0), (2, 3, 5, 7)) * jnp.array([3.0, 1.0])[:, None, None, None]
    found, expected = (jax.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (layer_norm, written_out_norm))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_phi_is_half_of_one_plus_a_tanh():
    """Against float64. From -5 on, where Phi is 4e-8, relative errors are small; below, the peer's 1 + tanh cancels."""
    x = np.linspace(-30, 30, 6001, dtype=np.float32).astype(np.float64)
    expected = (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    found = np.asarray(phi(jnp.asarray(x, jnp.float32)), np.float64)
    np.testing.assert_allclose(found, expected, atol=3e-7)
    np.testing.assert_allclose(found[x > -5], expected[x > -5], rtol=1e-5)


def test_gelu_and_its_gradient_are_flaxs_at_any_size():
    """At +-10,000 GELU is x or 0, with slopes 1 and 0, and nothing is NaN."""
    rows = jnp.concatenate([jnp.linspace(-30, 30, 6001), jnp.array([-1e4, -100, 0, 100, 1e4])])[:, None]
    ours = lambda rows: biased(rows, jnp.zeros(1), jnp.dtype("float32"), True)  # noqa: E731
    flaxs = partial(nn.gelu, approximate=True)
    np.testing.assert_allclose(ours(rows), flaxs(rows), rtol=1e-6, atol=2e-6)
    found, expected = (jax.grad(lambda rows, f=f: f(rows).sum())(rows) for f in (ours, flaxs))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)  # Flax's tails round 1 + tanh
    assert ours(rows)[-5:, 0].tolist() == [0, 0, 0, 100, 1e4]
    assert found[-5:, 0].tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
def test_a_bias_with_gelu_and_its_gradients_are_those_that_jax_derives(with_gelu, dtype, error):
    """Against float32 on the same rounded rows; a rounded result is rounded only once."""
    rows, weight = (jax.random.normal(jax.random.key(i), (40, 7)) * 3 for i in range(2))
    rows, bias, weight = rows.astype(dtype), jnp.arange(-3.0, 4.0), weight.astype(dtype).astype(jnp.float32)
    ours = partial(biased, result=jnp.dtype(dtype), with_gelu=with_gelu)
    plain = lambda rows, bias: (partial(nn.gelu, approximate=True) if with_gelu else jnp.asarray)(rows + bias[None])  # noqa: E731
    found, expected = (f(rows, bias) for f in (ours, plain))
    assert found.dtype == (dtype if with_gelu else jnp.float32)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=error, atol=5e-5)
    of = lambda f, rows: jax.grad(lambda *inputs: (weight * f(*inputs)).sum(), (0, 1))(rows, bias)  # noqa: E731
    by_rows, by_bias = of(ours, rows)
    expected_rows, expected_bias = of(plain, rows.astype(jnp.float32))
    assert (by_rows.dtype, by_bias.dtype) == (dtype, jnp.float32)
    np.testing.assert_allclose(by_rows.astype(jnp.float32), expected_rows, rtol=error, atol=5e-5)
    np.testing.assert_allclose(by_bias, expected_bias, atol=error * float(np.abs(expected_rows).sum(0).max()))


@pytest.mark.parametrize("with_gelu", [False, True])
def test_the_gradient_of_a_bias_is_summed_in_float32(with_gelu):
    """257 rows, each of slope 1 (also that of GELU at 40): bfloat16 holds 256 and 258, but not 257."""
    rows = jnp.full((257, 1), 40, jnp.bfloat16)
    added = lambda bias: biased(rows, bias, jnp.dtype("bfloat16"), with_gelu).astype(jnp.float32).sum()  # noqa: E731
    assert jax.jit(jax.grad(added))(jnp.zeros(1)).tolist() == [257]


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


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_a_product_and_its_gradients_are_those_of_exact_arithmetic(dtype, error, gpu, monkeypatch):
    """Against float64 on the rounded operands; also in the form for GPUs."""
    if gpu:
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *inputs, cpu, default: default(*inputs))
    x, kernel, weight = (jax.random.normal(jax.random.key(i), size) for i, size in enumerate([(5, 3), (3, 4), (5, 4)]))
    x, weight = x.astype(dtype), weight.astype(dtype)
    out, back = jax.vjp(lambda x, kernel: matmul(x, kernel, dtype), x, kernel)
    by_x, by_kernel = back(weight)
    assert (out.dtype, by_x.dtype, by_kernel.dtype) == (dtype, dtype, jnp.float32)
    X, K, W = (np.asarray(array.astype(dtype), np.float64) for array in (x, kernel, weight))
    for found, a, b in ((out, X, K), (by_x, W, K.T), (by_kernel, X.T, W)):
        assert (np.abs(np.asarray(found, np.float64) - a @ b) <= error * (np.abs(a) @ np.abs(b))).all()


@pytest.mark.parametrize(("inputs", "features"), [(3, 5), (5, 3), (4, 4)])
def test_the_kernels_gradient_sums_float32_products_of_bfloat16(inputs, features):
    """Integer operands, whose sums of products float32 holds exactly; CPUs transpose the narrower one."""
    rng = np.random.default_rng(0)
    x, gradient = rng.integers(-200, 200, (300, inputs)), rng.integers(-200, 200, (300, features))  # exact in bfloat16
    _, back = jax.vjp(
        lambda kernel: matmul(jnp.asarray(x, jnp.bfloat16), kernel),
        jnp.ones((inputs, features)),
    )
    found = jax.jit(back)(jnp.asarray(gradient, jnp.float32))[0]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, x.T @ gradient)  # below 2^24: float32 holds every sum


def products_of(jaxpr) -> list:
    """Returns every dot_general of a jaxpr and of its inner jaxprs."""
    found = [equation for equation in jaxpr.eqns if equation.primitive.name == "dot_general"]
    for equation in jaxpr.eqns:
        for inner in jaxpr_core.jaxprs_in_params(equation.params):
            found += products_of(inner)
    return found


@pytest.mark.parametrize(("dtype", "count"), [(jnp.float32, 3), (jnp.bfloat16, 5)])  # 5: two also have a form for CPUs
def test_backward_products_take_operands_of_one_dtype_and_one_row_axis(dtype, count):
    """A product of mixed dtypes, or one summed over two axes, runs at a fraction of the speed."""
    dense = Dense(4, dtype)
    params = dense.init(jax.random.key(0), jnp.zeros((1, 1, 3)))
    loss = lambda params, x: jnp.square(dense.apply(params, x)).sum()  # noqa: E731
    dots = products_of(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, jnp.ones((2, 5, 3))).jaxpr)
    assert len(dots) == count
    for dot in dots:
        assert {operand.aval.dtype for operand in dot.invars} == {jnp.dtype(dtype)}
        assert [len(axes) for axes in dot.params["dimension_numbers"][0]] == [1, 1]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_by_hand(stride, before):
    """Each output is the sum over the 3 x 3 pixels from stride (i, j) - before on, with zeros outside."""
    rng = np.random.default_rng(0)
    x, conv = rng.normal(size=(2, 6, 8, 3)).astype(np.float32), Conv3x3(5, stride, before)
    params = conv.init(jax.random.key(1), x)
    dense = params["params"]["Dense_0"]
    kernel = np.asarray(dense["kernel"], np.float64).reshape(3, 3, 3, 5)
    params = {"params": {"Dense_0": {"kernel": dense["kernel"], "bias": np.arange(5, dtype=np.float32)}}}
    padded = np.pad(x, ((0, 0), (before, 2 - before), (before, 2 - before), (0, 0)))
    expected = np.empty((2, 6 // stride, 8 // stride, 5))
    for i in range(6 // stride):
        for j in range(8 // stride):
            near = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            expected[:, i, j] = np.einsum("bhwc,hwcf->bf", near, kernel) + np.arange(5)
    np.testing.assert_allclose(conv.apply(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_accelerators_have_the_same_convolution(stride):
    """They use XLA's convolution and CPUs a product; here both run on the CPU, with their gradients."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((2, 8, 10, 3), (27, 5)))
    ours, theirs = (partial(way, stride=stride) for way in (convolve_as_product, convolve))
    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), atol=1e-5)
    of = lambda way: jax.grad(lambda *inputs: jnp.sin(way(*inputs)).sum(), (0, 1))(x, kernel)  # noqa: E731
    for one, other in zip(of(ours), of(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
