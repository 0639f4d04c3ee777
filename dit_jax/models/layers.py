"""The basic layers that the networks are built from, which also set the precision of their arithmetic.

Derivatives are written by hand where JAX's own would store more than they need: memory bounds a step, not arithmetic.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint


def multiply(spec: str, a: jax.Array, b: jax.Array, result: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns the einsum of two arrays of one dtype, accumulated in float32, in the dtype `result`.

    Its callers define their own derivatives. XLA's fast bfloat16 path on CPUs needs a float32 result, so there the
    result is rounded afterwards.
    """
    direct = partial(jnp.einsum, spec, preferred_element_type=result)
    if result == jnp.float32:
        return direct(a, b)
    wide = partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    return jax.lax.platform_dependent(a, b, cpu=lambda a, b: wide(a, b).astype(result), default=direct)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_RD: jax.Array, kernel: jax.Array, result: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns x @ kernel, [R, F] in `result`, with the float32 kernel [D, F] rounded to the dtype of x.

    The backward pass also multiplies in the dtype of x, where JAX would use float32. The gradient with respect to x is
    in the dtype of x, the one with respect to the kernel in float32.
    """
    return _matmul_forward(x_RD, kernel, result)[0]


def _matmul_forward(x_RD: jax.Array, kernel: jax.Array, result: jnp.dtype) -> tuple[jax.Array, Any]:
    kernel = kernel.astype(x_RD.dtype)
    return multiply("rd,df->rf", x_RD, kernel, result), (x_RD, kernel)


def _matmul_backward(_: jnp.dtype, operands: Any, gradient_RF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_RD, kernel = operands
    gradient_RF = gradient_RF.astype(x_RD.dtype)
    by_x = multiply("rf,df->rd", gradient_RF, kernel, x_RD.dtype)
    by_kernel = partial(multiply, "rd,rf->df")
    if x_RD.dtype == jnp.float32:
        return by_x, by_kernel(x_RD, gradient_RF)
    return by_x, jax.lax.platform_dependent(x_RD, gradient_RF, cpu=_kernel_gradient_on_cpu, default=by_kernel)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _kernel_gradient_on_cpu(x_RD: jax.Array, gradient_RF: jax.Array) -> jax.Array:
    """Returns x^T g of bfloat16 operands, float32 [D, F].

    If the product sums over the left operand's first axis, XLA multiplies in float32, seven times slower on AMX. So the
    narrower operand is transposed in memory. The barrier keeps XLA from undoing that, which would end in an error.
    """
    multiply = partial(jnp.einsum, "ij,jk->ik", preferred_element_type=jnp.float32)
    transposed = lambda array: with_layout_constraint(array.T, Layout(major_to_minor=(0, 1)))  # noqa: E731
    if x_RD.shape[1] <= gradient_RF.shape[1]:
        return multiply(transposed(x_RD), gradient_RF)
    return jax.lax.optimization_barrier(multiply(transposed(gradient_RF), x_RD)).T


TWICE_SLOPE = np.float32(2 * np.sqrt(2 / np.pi))


def phi(x: jax.Array) -> jax.Array:
    """Returns (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3), as 1 / (1 + exp(-2 u)): less work than a tanh."""
    return 1 / (1 + jnp.exp(-TWICE_SLOPE * (x + 0.044715 * x * x * x)))


def gelu_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the gradient with respect to x of x phi(x), which has this gradient."""
    share, slope = phi(x), TWICE_SLOPE * (1 + 3 * 0.044715 * x * x)
    return gradient * (share + x * share * (1 - share) * slope)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def biased(rows_RF: jax.Array, bias_F: jax.Array, result: jnp.dtype, with_gelu: bool) -> jax.Array:
    """Returns rows + bias in float32, or gelu(rows + bias) in `result`, which is the dtype of the rows.

    GELU is x Phi(x), with Phi in its tanh form (Hendrycks & Gimpel 2016). Its backward pass needs only the rows and the
    bias, and recomputes Phi. The gradient of the rows is rounded to `result`; the gradient of the bias sums the rounded
    values in float32.
    """
    return _biased_forward(rows_RF, bias_F, result, with_gelu)[0]


def _biased_forward(rows_RF: jax.Array, bias_F: jax.Array, result: jnp.dtype, with_gelu: bool) -> tuple[jax.Array, Any]:
    x = rows_RF.astype(jnp.float32) + bias_F[None]
    return ((x * phi(x)).astype(result), (rows_RF, bias_F)) if with_gelu else (x, None)


def _biased_backward(
    result: jnp.dtype, with_gelu: bool, kept: Any, gradient_RF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gradient_RF = gradient_RF.astype(jnp.float32)
    if with_gelu:
        rows_RF, bias_F = jax.lax.optimization_barrier(kept)  # otherwise XLA keeps the forward pass's Phi, in float32
        x = rows_RF.astype(jnp.float32) + bias_F[None]
        gradient_RF = gelu_gradient(x, gradient_RF)
    gradient_RF = jax.lax.optimization_barrier(gradient_RF.astype(result))  # one array for both uses below
    return gradient_RF, gradient_RF.astype(jnp.float32).sum(0)


biased.defvjp(_biased_forward, _biased_backward)


class Dense(nn.Module):
    """x @ kernel + bias: [..., D_in] -> float32 [..., features], with the product taken in `dtype`.

    The product is rounded to `result`, which saves memory. `with_gelu` returns gelu(x @ kernel + bias) in `result`.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()  # DiT, initialize_weights
    result: jnp.dtype = jnp.dtype("float32")
    with_gelu: bool = False

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel [inputs, features] and the bias [features], float32."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x.shape[-1])
        # One row axis: with two, XLA's backward pass on CPUs makes transposed copies, which halves the speed.
        rows = jnp.asarray(matmul(x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel, self.result))
        return jnp.asarray(biased(rows, bias, self.result, self.with_gelu)).reshape(*x.shape[:-1], self.features)


class Conv3x3(nn.Module):
    """A zero-padded 3x3 convolution in float32: [B, H, W, C] -> [B, H / stride, W / stride, features].

    Padding adds two rows and two columns of zeros, `before` of each at the top and left. On CPUs the convolution is one
    matrix product, as XLA's own convolutions are several times slower inside a loop, where the train steps run. That
    takes nine times the memory of its input, so other devices use XLA's convolution.
    """

    features: int
    stride: int = 1
    before: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        dense = Dense(self.features, jnp.dtype("float32"), self.kernel_init)
        kernel, bias = dense.weights(9 * x_BHWC.shape[-1])
        padding = (self.before, 2 - self.before)
        x = jnp.pad(x_BHWC, ((0, 0), padding, padding, (0, 0)))
        as_one, as_xla = (partial(way, stride=self.stride) for way in (convolve_as_product, convolve))
        return jax.lax.platform_dependent(x, kernel, cpu=as_one, default=as_xla) + bias[None, None, None]


def convolve_as_product(x_BHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves without padding, as a product of 3 x 3 windows and the kernel [9 C, F].

    Returns [B, H - 2, W - 2, F], of which `stride` keeps every stride-th row and column.
    """
    H, W = (size - 2 for size in x_BHWC.shape[1:3])
    shifted = [x_BHWC[:, i : i + H : stride, j : j + W : stride] for i in range(3) for j in range(3)]
    near = jnp.concatenate(shifted, axis=-1)
    rows = jnp.asarray(matmul(near.reshape(-1, near.shape[-1]), kernel))
    return rows.reshape(*near.shape[:-1], -1)


def convolve(x_BHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Computes `convolve_as_product` with XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel.reshape(3, 3, x_BHWC.shape[-1], -1),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def layer_norm(x: jax.Array) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + 1e-6) over the last axis, in float32, without a learned scale or shift.

    It is computed row by row: for [B, N, D] with odd N, XLA's kernels on GPUs take one token of 32 images at a time.
    With 65 tokens, rows gave 17% more images/s on an H200.
    """
    return _layer_norm(x.astype(jnp.float32).reshape(-1, x.shape[-1])).reshape(x.shape)


@jax.custom_vjp
def _layer_norm(x: jax.Array) -> jax.Array:
    return _layer_norm_forward(x)[0]


def _layer_norm_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return centred * inverse, (centred * inverse, inverse)


def _layer_norm_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    y, inverse = kept
    mean, along = gradient.mean(-1, keepdims=True), (gradient * y).mean(-1, keepdims=True)
    return (inverse * (gradient - mean - along * y),)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=True), "silu": nn.silu}
