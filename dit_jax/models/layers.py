"""The two layers everything else is made of, with the precision the whole network keeps."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=True), "silu": nn.silu}


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
    return product(f"{out},{axes_b}->{axes_a}", dtype, gradient, b), product(
        f"{axes_a},{out}->{axes_b}", dtype, a, gradient
    )


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """x @ kernel + bias: [..., D_in] -> float32 [..., features], the product taken in `dtype`."""

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()  # DiT, initialize_weights

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        # Rows of one matrix: with two row axes XLA's backward pass on CPUs makes transposed copies, at half the speed.
        rows = jnp.asarray(product("rd,df->rf", self.dtype, x.reshape(-1, x.shape[-1]), kernel))
        return (rows + bias[None]).reshape(*x.shape[:-1], self.features)


def layer_norm(x: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-6) over the last axis, in float32, without learned scale or shift."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)
