"""Ways to compute the same train step, to be timed on a GPU: settings, environments, and patches of the code.

A variant is no option of dit-jax. What wins moves into the code, with its figure in docs/performance.md; what does not
is deleted here.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp

from dit_jax.models import attention, layers


@dataclass(frozen=True)
class Variant:
    """What differs from the code as it is; `patch` names one of PATCHES."""

    assignments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    patch: str = ""


def pad(array: jax.Array, length: int) -> jax.Array:
    """Zeros after the tokens, axis 1, up to `length`."""
    return jnp.pad(array, [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2))


def library_attention(
    q_BNKGE: jax.Array,
    k_BMKE: jax.Array,
    v_BMKE: jax.Array,
    dtype: jnp.dtype,
    implementation: Literal["xla", "cudnn"],
    length: int = 0,
) -> jax.Array:
    """JAX's own attention in place of ours, by cuDNN or by XLA, on tokens padded to `length` (0: as they are)."""
    B, N, K, G, E = q_BNKGE.shape
    length = max(N, length)
    q, k, v = (pad(x, length).astype(dtype) for x in (q_BNKGE.reshape(B, N, K * G, E), k_BMKE, v_BMKE))
    seen = jnp.full((B,), N, jnp.int32) if length > N else None
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=seen, implementation=implementation)
    return out[:, :N].reshape(B, N, K, G, E).astype(jnp.float32)


def padded_attention(
    q_BNKGE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, dtype: jnp.dtype, length: int
) -> jax.Array:
    """Ours on tokens padded to `length`; the added keys are masked."""
    N = q_BNKGE.shape[1]
    q, k, v = (pad(x, max(N, length)) for x in (q_BNKGE, k_BMKE, v_BMKE))
    scores = layers.product("BNKGE,BMKE->BKGNM", dtype, q, k) * q.shape[-1] ** -0.5
    masked = jnp.where((jnp.arange(scores.shape[-1]) < N)[None, None, None, None], scores, -jnp.inf)
    return jnp.asarray(layers.product("BKGNM,BMKE->BNKGE", dtype, jax.nn.softmax(masked, axis=-1), v))[:, :N]


def plain_product(spec: str, dtype: jnp.dtype, a: jax.Array, b: jax.Array) -> jax.Array:
    """Left to JAX: results in `dtype` too, so activations between two layers take half the memory."""
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype))


def replace_attention(function: Callable[..., Any]) -> Any:
    """Another attention, from here on in this context."""
    return mock.patch.object(attention, "grouped_query_attention", function)


@contextlib.contextmanager
def low_precision_results() -> Iterator[None]:
    """Every product gives its result in its operands' precision."""
    with mock.patch.object(layers, "product", plain_product), mock.patch.object(attention, "product", plain_product):
        yield


PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "": contextlib.nullcontext,
    "cudnn": lambda: replace_attention(partial(library_attention, implementation="cudnn")),
    "cudnn_72": lambda: replace_attention(partial(library_attention, implementation="cudnn", length=72)),
    "cudnn_128": lambda: replace_attention(partial(library_attention, implementation="cudnn", length=128)),
    "xla": lambda: replace_attention(partial(library_attention, implementation="xla")),
    "pad_72": lambda: replace_attention(partial(padded_attention, length=72)),
    "pad_80": lambda: replace_attention(partial(padded_attention, length=80)),
    "pad_128": lambda: replace_attention(partial(padded_attention, length=128)),
    "bf16_results": low_precision_results,
}


def flag(text: str) -> Variant:
    """A flag of XLA's."""
    return Variant(env={"XLA_FLAGS": f"--xla_gpu_{text}"})


VARIANTS: dict[str, Variant] = {
    "steps_per_call=1": Variant(("train.steps_per_call=1",)),
    "steps_per_call=64": Variant(("train.steps_per_call=64",)),
    "6 heads of 64": Variant(("model.num_heads=6",)),
    "no token: adaLN-Zero": Variant(("model.conditioning=adaln_zero",)),
    "remat": Variant(("model.remat=true",)),
    **{f"attention {name}": Variant(patch=name) for name in PATCHES if name not in ("", "bf16_results")},
    "6 heads of 64, cudnn": Variant(("model.num_heads=6",), patch="cudnn"),
    "bf16 results": Variant(patch="bf16_results"),
    "rbg": Variant(env={"JAX_DEFAULT_PRNG_IMPL": "rbg"}),
    "no command buffers": flag("enable_command_buffer="),
    "command buffers from 1": flag("graph_min_graph_size=1"),
    "latency hiding": flag("enable_latency_hiding_scheduler=true"),
    "autotune 0": flag("autotune_level=0"),
    "triton gemm any": flag("triton_gemm_any=true"),
    "exhaustive tiling": flag("exhaustive_tiling_search=true"),
}
