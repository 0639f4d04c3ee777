"""The layers everything else is made of, with the precision the whole network keeps.

Their derivatives are written out where JAX's own would keep more than they need: a step waits for memory, not for sums.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

DENSE, KERNEL_GRADIENT = "rd,df->rf", "rd,rf->df"


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, dtype: jnp.dtype, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum of two arrays with operands rounded to `dtype` and sums in float32: float32. So are its gradients.

    Left to itself the backward pass of a bfloat16 product multiplies float32 cotangents, at float32's speed. XLA's fast
    bfloat16 path on CPUs needs a float32 result. Every axis of `spec` is in two of the three arrays or in all three.
    """
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _product_forward(spec: str, dtype: jnp.dtype, a: jax.Array, b: jax.Array) -> tuple[jax.Array, Any]:
    a, b = a.astype(dtype), b.astype(dtype)
    return product(spec, dtype, a, b), (a, b)


def _product_backward(spec: str, dtype: jnp.dtype, operands: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    inputs, out = spec.split("->")
    axes_a, axes_b = inputs.split(",")
    by_a = jnp.asarray(product(f"{out},{axes_b}->{axes_a}", dtype, gradient, b))
    by_b = f"{axes_a},{out}->{axes_b}"
    if by_b == KERNEL_GRADIENT and dtype == jnp.bfloat16:
        plain = partial(jnp.einsum, KERNEL_GRADIENT, preferred_element_type=jnp.float32)
        operands = a, gradient.astype(dtype)
        return by_a, jax.lax.platform_dependent(*operands, cpu=_kernel_gradient_on_cpu, default=plain)
    return by_a, jnp.asarray(product(by_b, dtype, a, gradient))


product.defvjp(_product_forward, _product_backward)


def _kernel_gradient_on_cpu(x_RD: jax.Array, gradient_RF: jax.Array) -> jax.Array:
    """KERNEL_GRADIENT of bfloat16 operands, float32 [D, F].

    Where the left operand is summed over its first axis, XLA multiplies in float32, seven times as slowly on AMX. So
    the narrower operand is transposed in memory. The barrier keeps XLA from undoing it, to end in an error.
    """
    multiply = partial(jnp.einsum, "ij,jk->ik", preferred_element_type=jnp.float32)
    transposed = lambda array: with_layout_constraint(array.T, Layout(major_to_minor=(0, 1)))  # noqa: E731
    if x_RD.shape[1] <= gradient_RF.shape[1]:
        return multiply(transposed(x_RD), gradient_RF)
    return jax.lax.optimization_barrier(multiply(transposed(gradient_RF), x_RD)).T


class Dense(nn.Module):
    """x @ kernel + bias: [..., D_in] -> float32 [..., features], the product taken in `dtype`."""

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()  # DiT, initialize_weights

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """The kernel [inputs, features] and the bias, float32."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x.shape[-1])
        # Rows of one matrix: with two row axes XLA's backward pass on CPUs makes transposed copies, at half the speed.
        rows = jnp.asarray(product(DENSE, self.dtype, x.reshape(-1, x.shape[-1]), kernel))
        return (rows + bias[None]).reshape(*x.shape[:-1], self.features)


class Conv3x3(nn.Module):
    """A 3x3 convolution in float32, zeros outside: [B, H, W, C] -> [B, H / stride, W / stride, features].

    `before` of the two rows and columns of zeros that it needs come first. On CPUs it is one product, as XLA's own
    convolutions are several times slower within a loop, where the train steps are; that takes nine times the memory of
    its input, so elsewhere it is XLA's.
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
    """The 3 x 3 pixels from each on, or from every `stride`-th, times the kernel [9 C, F]: [B, H - 2, W - 2, F]."""
    H, W = (size - 2 for size in x_BHWC.shape[1:3])
    shifted = [x_BHWC[:, i : i + H : stride, j : j + W : stride] for i in range(3) for j in range(3)]
    near = jnp.concatenate(shifted, axis=-1)
    rows = jnp.asarray(product(DENSE, jnp.dtype("float32"), near.reshape(-1, near.shape[-1]), kernel))
    return rows.reshape(*near.shape[:-1], -1)


def convolve(x_BHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve_as_product` by XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel.reshape(3, 3, x_BHWC.shape[-1], -1),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def layer_norm(x: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-6) over the last axis, in float32, without learned scale or shift."""
    return _layer_norm(x.astype(jnp.float32))


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


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi in its tanh form (Hendrycks & Gimpel 2016). The backward pass takes the tanh again from x."""
    return nn.gelu(x, approximate=True)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    slope = np.float32(np.sqrt(2 / np.pi))
    tanh = jnp.tanh(slope * (x + 0.044715 * x**3))
    inner = slope * (1 + 3 * 0.044715 * x**2)
    return (gradient * 0.5 * (1 + tanh + x * (1 - tanh**2) * inner),)


gelu.defvjp(_gelu_forward, _gelu_backward)
ACTIVATIONS = {"gelu": gelu, "silu": nn.silu}
