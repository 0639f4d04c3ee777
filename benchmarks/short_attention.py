"""Attention of short sequences in bfloat16, as one kernel for NVIDIA GPUs: a variant to be timed (variants.py).

cuDNN's kernels take tiles of 64 tokens, so 65 may cost as much as 128; they need an even number of tokens, and queries,
keys and values as arrays of their own. Here all scores of a tile of queries are in registers, tiles are powers of two
(64 + 16 for 65 tokens), heads are read in place from the product's result, and the backward pass needs only its inputs
(Dao et al. 2022, B.2).

It is written in Pallas for its Triton backend, which JAX 0.11 deprecates but has. CPUs interpret it.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from dit_jax.models import attention
from dit_jax.models.layers import Dense

LONGEST = 128  # tokens; by ptxas, the backward pass of 128 spills 872 bytes a thread, that of 65 8, that of 64 none
WARPS = 4  # per program

Tile = tuple[int, int]  # the first token and how many: a power of two, as Triton's arrays are


def tiles(count: int) -> list[Tile]:
    """Returns tiles of 16, 32 or 64 tokens that cover `count` tokens; the last may reach beyond them."""
    found, start = [], 0
    while start < count:
        size = min(64, max(16, 1 << ((count - start).bit_length() - 1)))
        found.append((start, size))
        start += size
    return found


def inside(tile: Tile, limits: tuple[int, int], width: int) -> jax.Array:
    """Returns which elements [tokens of the tile, width] are in an array whose sizes are `limits`."""
    start, size = tile
    token, element = (jax.lax.broadcasted_iota(jnp.int32, (size, width), axis) for axis in (0, 1))
    return (start + token < limits[0]) & (element < limits[1])


def load(ref: Any, tile: Tile, head: Any, limits: tuple[int, int]) -> jax.Array:
    """Returns a head's tile [tokens, padded width], zeros outside."""
    mask = inside(tile, limits, ref.shape[-1])
    return triton.load(ref.at[pl.ds(*tile), head, :], mask=mask, other=0.0)


def store(ref: Any, tile: Tile, head: Any, limits: tuple[int, int], values: jax.Array) -> None:
    """Stores a head's tile."""
    mask = inside(tile, limits, ref.shape[-1])
    triton.store(ref.at[pl.ds(*tile), head, :], values.astype(ref.dtype), mask=mask)


def softmax(q: jax.Array, keys: list[jax.Array], limits: tuple[int, int]) -> tuple[list[jax.Array], jax.Array]:
    """Returns exp(scores - maximum) by tile of keys, and the sum over all keys [queries, 1]."""
    N, E = limits
    scores = [triton.dot(q, k.T) * (E**-0.5 * math.log2(math.e)) for k in keys]
    start, size = tiles(N)[-1]
    token = start + jax.lax.broadcasted_iota(jnp.int32, scores[-1].shape, 1)
    if start + size > N:
        scores[-1] = jnp.where(token < N, scores[-1], -jnp.inf)
    top = functools.reduce(jnp.maximum, [one.max(1) for one in scores])[:, None]
    weights = [jnp.exp2(one - top) for one in scores]
    return weights, total([one.sum(1) for one in weights])[:, None]


def total(arrays: list[jax.Array]) -> jax.Array:
    """Returns the sum of arrays of one shape."""
    return functools.reduce(jnp.add, arrays)


def forward_kernel(x_ref: Any, out_ref: Any, *, limits: tuple[int, int], K: int) -> None:
    """Computes one query head of one image."""
    H, parts = out_ref.shape[1], tiles(limits[0])
    head = pl.program_id(0) % H
    k_head = H + head // (H // K)
    keys, values = ([load(x_ref, part, at, limits) for part in parts] for at in (k_head, k_head + K))
    for part in parts:
        weights, sums = softmax(load(x_ref, part, head, limits), keys, limits)
        out = total([triton.dot(w.astype(v.dtype), v) for w, v in zip(weights, values, strict=True)])
        store(out_ref, part, head, limits, out / sums)


def backward_kernel(x_ref: Any, gradient_ref: Any, by_x_ref: Any, *, limits: tuple[int, int], K: int) -> None:
    """Computes the gradients of one key head of one image and of its queries and values."""
    E, H, parts = limits[1], gradient_ref.shape[1], tiles(limits[0])
    k_head, group = H + pl.program_id(0) % K, H // K
    keys, values = ([load(x_ref, part, at, limits) for part in parts] for at in (k_head, k_head + K))

    def query_head(index: Any, gradients: Any) -> Any:
        by_keys, by_values = map(list, gradients)
        head = (k_head - H) * group + index
        for part in parts:
            q, gradient = load(x_ref, part, head, limits), load(gradient_ref, part, head, limits)
            weights, sums = softmax(q, keys, limits)
            weights = [one / sums for one in weights]
            by_weights = [triton.dot(gradient, v.T) for v in values]
            along = total([(w * b).sum(1) for w, b in zip(weights, by_weights, strict=True)])[:, None]
            by_scores = [(w * (b - along) * E**-0.5).astype(q.dtype) for w, b in zip(weights, by_weights, strict=True)]
            for j, (w, b) in enumerate(zip(weights, by_scores, strict=True)):
                by_keys[j] += triton.dot(b.T, q)
                by_values[j] += triton.dot(w.astype(q.dtype).T, gradient)
            by_q = total([triton.dot(b, k) for b, k in zip(by_scores, keys, strict=True)])
            store(by_x_ref, part, head, limits, by_q)
        return tuple(by_keys), tuple(by_values)

    zeros = tuple(jnp.zeros(k.shape, jnp.float32) for k in keys)
    by_keys, by_values = jax.lax.fori_loop(0, group, query_head, (zeros, zeros))
    for part, by_k, by_v in zip(parts, by_keys, by_values, strict=True):
        store(by_x_ref, part, k_head, limits, by_k)
        store(by_x_ref, part, k_head + K, limits, by_v)


def call(kernel: Any, programs: int, inputs: tuple[jax.Array, ...], heads: int, K: int) -> jax.Array:
    """Runs a kernel with `programs` programs per image; each sees whole images. Returns [B, N, heads, E]."""
    B, N, _, E = inputs[0].shape
    tokens, width = sum(size for _, size in tiles(N)), pl.next_power_of_2(E)
    block = lambda count: pl.BlockSpec((None, tokens, count, width), lambda i: (i // programs, 0, 0, 0))  # noqa: E731
    run = functools.partial(
        pl.pallas_call,
        functools.partial(kernel, limits=(N, E), K=K),
        out_shape=jax.ShapeDtypeStruct((B, N, heads, E), inputs[0].dtype),
        grid=(B * programs,),
        in_specs=[block(x.shape[2]) for x in inputs],
        out_specs=block(heads),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        name=f"short_attention_{kernel.__name__}",
    )
    return jax.lax.platform_dependent(*inputs, cpu=run(interpret=True), default=run())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def short_attention(x_BNHE: jax.Array, K: int) -> jax.Array:
    """Returns softmax(q k / sqrt(E)) v, [B, N, query heads, E] in the dtype of x.

    x has the query heads, then K key heads, then K value heads; query head h uses key head h // G. The softmax is
    computed in float32, the operands of products have the dtype of x.
    """
    return _forward(x_BNHE, K)[0]


def _forward(x_BNHE: jax.Array, K: int) -> tuple[jax.Array, jax.Array]:
    H = x_BNHE.shape[2] - 2 * K
    return call(forward_kernel, H, (x_BNHE,), H, K), x_BNHE


def _backward(K: int, x_BNHE: jax.Array, gradient_BNHE: jax.Array) -> tuple[jax.Array]:
    return (call(backward_kernel, K, (x_BNHE, gradient_BNHE), x_BNHE.shape[2], K),)


short_attention.defvjp(_forward, _backward)


class Attention(attention.Attention):
    """Self-attention by this kernel in bfloat16 with at most LONGEST tokens; otherwise as it is."""

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        B, N, D = x_BND.shape
        if self.dtype != jnp.bfloat16 or N > LONGEST:
            return super().__call__(x_BND)
        H, K, E = self.num_heads, self.num_kv_heads, D // self.num_heads
        x = Dense((H + 2 * K) * E, dtype=self.dtype, result=self.dtype, name="qkv")(x_BND).reshape(B, N, H + 2 * K, E)
        if self.qk_norm:
            q, k, v = jnp.split(x, [H, H + K], axis=2)
            x = jnp.concatenate([nn.RMSNorm(name="q_norm")(q), nn.RMSNorm(name="k_norm")(k), v], axis=2)
        out = jnp.asarray(short_attention(x.astype(self.dtype), K)).reshape(B, N, D)
        return Dense(D, dtype=self.dtype, result=self.dtype, name="out")(out)
