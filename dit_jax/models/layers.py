"""The two layers everything else is made of, with the precision the whole network keeps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=True), "silu": nn.silu}


class Dense(nn.Module):
    """x @ kernel + bias: [..., D_in] -> float32 [..., features], the product taken in `dtype`.

    Products of bfloat16 are summed in float32 by the hardware anyway, and XLA's fast bfloat16 path on CPUs needs a
    float32 result.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()  # DiT, initialize_weights

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        product = jnp.matmul(rows, kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        return (product + bias[None]).reshape(*x.shape[:-1], self.features)


def layer_norm(x: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-6) over the last axis, in float32, without learned scale or shift."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)
