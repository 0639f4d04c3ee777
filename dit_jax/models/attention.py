"""Grouped-query attention (Ainslie et al. 2023): G query heads share each of K key/value heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.models.layers import Dense, product


def grouped_query_attention(
    q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """softmax(q k / sqrt(E)) v, every group of G query heads on its own key/value head: float32 [B, N, K, G, E].

    Keys and values are never repeated in memory; the softmax is in float32, the products are taken in `dtype`.
    """
    q_BKGNE = q_BNKGE.transpose(0, 2, 3, 1, 4) * q_BNKGE.shape[-1] ** -0.5
    k_BKME, v_BKME = k_BMKE.transpose(0, 2, 1, 3), v_BMKE.transpose(0, 2, 1, 3)
    scores_BKGNM = jnp.asarray(product("BKGNE,BKME->BKGNM", dtype, q_BKGNE, k_BKME))
    out_BKGNE = jnp.asarray(product("BKGNM,BKME->BKGNE", dtype, jax.nn.softmax(scores_BKGNM, axis=-1), v_BKME))
    return out_BKGNE.transpose(0, 3, 1, 2, 4)


class Attention(nn.Module):
    """Self-attention over all tokens: [B, N, D] -> [B, N, D]. Query head h uses key/value head h // G.

    `qk_norm`: each query and key is divided by its root mean square, times scales [E] that all heads share and that
    start at 1. Then these alone, not the lengths of queries and keys, can make scores large (Esser et al. 2024, 5.3.2).
    """

    num_heads: int
    num_kv_heads: int
    qk_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        B, N, D = x_BND.shape
        K, G, E = self.num_kv_heads, self.num_heads // self.num_kv_heads, D // self.num_heads
        qkv = Dense((K * G + 2 * K) * E, dtype=self.dtype, name="qkv")(x_BND)
        q, k, v = jnp.split(qkv, [K * G * E, (K * G + K) * E], axis=-1)
        q_BNKGE, k_BNKE, v_BNKE = q.reshape(B, N, K, G, E), k.reshape(B, N, K, E), v.reshape(B, N, K, E)
        if self.qk_norm:
            q_BNKGE, k_BNKE = nn.RMSNorm(name="q_norm")(q_BNKGE), nn.RMSNorm(name="k_norm")(k_BNKE)
        out_BNKGE = grouped_query_attention(q_BNKGE, k_BNKE, v_BNKE, self.dtype)
        return Dense(D, dtype=self.dtype, name="out")(out_BNKGE.reshape(B, N, D))
