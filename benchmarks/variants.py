"""Other ways to compute a train step, to be timed on a GPU: settings, environments, and patches of the code.

A variant is not an option of dit-jax. If it wins, it moves into the code, with its figure in docs/performance.md;
otherwise it is deleted here.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.models import attention

OURS = attention.grouped_query_attention


@dataclass(frozen=True)
class Variant:
    """What differs from the current code; `patch` names one of PATCHES."""

    assignments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    patch: str = ""


def pad(array: jax.Array, length: int) -> jax.Array:
    """Appends zeros to the tokens, axis 1, up to `length`."""
    return jnp.pad(array, [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2))


def cudnn_attention(q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Computes attention with cuDNN. JAX's interface to it trains only on even numbers of tokens, so it may add one."""
    B, N, K, G, E = q_BNKGE.shape
    length = N + N % 2
    q, k, v = (pad(x, length).astype(dtype) for x in (q_BNKGE.reshape(B, N, K * G, E), k_BMKE, v_BMKE))
    seen = jnp.full((B,), N, jnp.int32) if length > N else None
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=seen, key_value_seq_lengths=seen, implementation="cudnn"
    )
    return out[:, :N].reshape(B, N, K, G, E)


def padded_attention(
    q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, dtype: jnp.dtype, length: int
) -> jax.Array:
    """Runs ours on tokens padded to `length`. Eight more features give added keys scores at which a softmax is 0."""
    N, E = q_BNKGE.shape[1], q_BNKGE.shape[-1]
    q_BNKGE = q_BNKGE * np.float32(((E + 8) / E) ** 0.5)  # as attention will divide by sqrt(E + 8)
    more = lambda x, value: jnp.concatenate([x, jnp.full((*x.shape[:-1], 8), value, x.dtype)], axis=-1)  # noqa: E731
    q, v = (pad(x, max(N, length)) for x in (more(q_BNKGE, 1.0), v_BMKE))
    k = pad(more(k_BMKE, 0.0), max(N, length)).at[:, N:, :, E:].set(-1e4)
    return OURS(q, k, v, dtype)[:, :N]


def replace_attention(function: Callable[..., Any]) -> Any:
    """Returns a context in which `function` replaces our attention."""
    return mock.patch.object(attention, "grouped_query_attention", function)


PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "": contextlib.nullcontext,
    "cudnn": lambda: replace_attention(cudnn_attention),
    "pad_72": lambda: replace_attention(partial(padded_attention, length=72)),
}


def flag(text: str) -> Variant:
    """Returns a variant with a flag of XLA's for GPUs."""
    return Variant(env={"XLA_FLAGS": f"--xla_gpu_{text}"})


VARIANTS: dict[str, Variant] = {
    **{f"attention {name}": Variant(patch=name) for name in PATCHES if name},  # most promising first
    "6 heads of 64, cudnn": Variant(("model.num_heads=6",), patch="cudnn"),
    "steps_per_call=1": Variant(("train.steps_per_call=1",)),
    "steps_per_call=64": Variant(("train.steps_per_call=64",)),
    "6 heads of 64": Variant(("model.num_heads=6",)),
    "no token: adaLN-Zero": Variant(("model.conditioning=adaln_zero",)),
    "remat": Variant(("model.remat=true",)),
    "rbg": Variant(env={"JAX_DEFAULT_PRNG_IMPL": "rbg"}),
    "no command buffers": flag("enable_command_buffer="),
    "command buffers from 1": flag("graph_min_graph_size=1"),
    "latency hiding": flag("enable_latency_hiding_scheduler=true"),
    "autotune 0": flag("autotune_level=0"),
    "triton gemm any": flag("triton_gemm_any=true"),
    "exhaustive tiling": flag("exhaustive_tiling_search=true"),  # may tune for longer than a call lasts
}
