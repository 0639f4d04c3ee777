"""Grouped-query attention (Ainslie et al. 2023): each of K key/value heads is shared by G query heads."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.models.layers import Dense, multiply


def grouped_query_attention(
    q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Returns softmax(q k / sqrt(E)) v, each group of G query heads on its own key/value head: [B, N, K, G, E].

    Keys and values are never repeated in memory. The softmax is computed in float32; the matrix products take operands
    in `dtype`, which is also the dtype of the result. In bfloat16, NVIDIA GPUs compute it with cuDNN if E is a multiple
    of 8 up to 128.
    """
    width = q_BNKGE.shape[-1]
    if dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128 and has_cudnn_attention():
        with contextlib.suppress(NotImplementedError, RuntimeError):  # what JAX says of a cuDNN that is too old
            return cudnn_attention(q_BNKGE, k_BMKE, v_BMKE)
    q_BKGNE = q_BNKGE.transpose(0, 2, 3, 1, 4) * q_BNKGE.shape[-1] ** -0.5
    k_BKME, v_BKME = k_BMKE.transpose(0, 2, 1, 3), v_BMKE.transpose(0, 2, 1, 3)
    out_BKGNE = attend(q_BKGNE.astype(dtype), k_BKME.astype(dtype), v_BKME.astype(dtype))
    return jnp.asarray(out_BKGNE).transpose(0, 3, 1, 2, 4)


def has_cudnn_attention() -> bool:
    """Whether programs run where cuDNN has flash attention in bfloat16: on NVIDIA's GPUs from Ampere on."""
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(device, str) or device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return int(device.compute_capability.partition(".")[0]) >= 8


def cudnn_attention(q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array) -> jax.Array:
    """Computes `grouped_query_attention` in bfloat16 by flash attention (Dao et al. 2022), which writes no scores.

    JAX's interface to cuDNN trains only on even numbers of tokens, so one may be added that nobody attends to.
    """
    B, N, K, G, E = q_BNKGE.shape
    q, k, v = (x.astype(jnp.bfloat16) for x in (q_BNKGE.reshape(B, N, K * G, E), k_BMKE, v_BMKE))
    seen = None
    if N % 2:
        q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (q, k, v))
        seen = jnp.full((B,), N, jnp.int32)
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=seen, key_value_seq_lengths=seen, implementation="cudnn"
    )
    return out[:, :N].reshape(B, N, K, G, E)


@jax.custom_vjp
def attend(q_BKGNE: jax.Array, k_BKME: jax.Array, v_BKME: jax.Array) -> jax.Array:
    """Returns softmax(q k) v in the dtype of its inputs; the softmax saved for the backward pass has that dtype too.

    With weights P and output O = P V, an output gradient dO gives the scores the gradient P (dO V^T - rowsum(dO O))
    (Dao et al. 2022, B.2).
    """
    return _attend_forward(q_BKGNE, k_BKME, v_BKME)[0]


def _attend_forward(q_BKGNE: jax.Array, k_BKME: jax.Array, v_BKME: jax.Array) -> tuple[jax.Array, Any]:
    scores_BKGNM = multiply("BKGNE,BKME->BKGNM", q_BKGNE, k_BKME)
    weights_BKGNM = jax.nn.softmax(scores_BKGNM, axis=-1).astype(q_BKGNE.dtype)
    out_BKGNE = multiply("BKGNM,BKME->BKGNE", weights_BKGNM, v_BKME, q_BKGNE.dtype)
    return out_BKGNE, (q_BKGNE, k_BKME, v_BKME, weights_BKGNM, out_BKGNE)


def _attend_backward(kept: Any, gradient_BKGNE: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BKGNE, k_BKME, v_BKME, weights_BKGNM, out_BKGNE = jax.lax.optimization_barrier(kept)
    dtype, wide = q_BKGNE.dtype, jnp.float32
    by_weights_BKGNM = multiply("BKGNE,BKME->BKGNM", gradient_BKGNE, v_BKME)
    along_BKGN1 = (gradient_BKGNE.astype(wide) * out_BKGNE.astype(wide)).sum(-1, keepdims=True)
    by_scores_BKGNM = (weights_BKGNM.astype(wide) * (by_weights_BKGNM - along_BKGN1)).astype(dtype)
    by_q_BKGNE = multiply("BKGNM,BKME->BKGNE", by_scores_BKGNM, k_BKME, dtype)
    by_k_BKME = multiply("BKGNM,BKGNE->BKME", by_scores_BKGNM, q_BKGNE, dtype)
    return by_q_BKGNE, by_k_BKME, multiply("BKGNM,BKGNE->BKME", weights_BKGNM, gradient_BKGNE, dtype)


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Self-attention over all tokens: [B, N, D] -> [B, N, D]. Query head h uses key/value head h // G.

    With `qk_norm`, each query and key is divided by its root mean square and multiplied by a learned scale [E], which
    all heads share and which starts at 1. Only these scales, not the norms of queries and keys, can then make the
    scores large (Esser et al. 2024, 5.3.2).
    """

    num_heads: int
    num_kv_heads: int
    qk_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        B, N, D = x_BND.shape
        K, G, E = self.num_kv_heads, self.num_heads // self.num_kv_heads, D // self.num_heads
        qkv = Dense((K * G + 2 * K) * E, dtype=self.dtype, result=self.dtype, name="qkv")(x_BND)
        q, k, v = jnp.split(qkv, [K * G * E, (K * G + K) * E], axis=-1)
        q_BNKGE, k_BNKE, v_BNKE = q.reshape(B, N, K, G, E), k.reshape(B, N, K, E), v.reshape(B, N, K, E)
        if self.qk_norm:
            q_BNKGE, k_BNKE = nn.RMSNorm(name="q_norm")(q_BNKGE), nn.RMSNorm(name="k_norm")(k_BNKE)
        out_BNKGE = grouped_query_attention(q_BNKGE, k_BNKE, v_BNKE, self.dtype)
        return Dense(D, dtype=self.dtype, result=self.dtype, name="out")(out_BNKGE.reshape(B, N, D))
