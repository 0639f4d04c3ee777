"""Other ways to compute a train step, to be timed on a GPU by trials.py: settings, and patches of the code.

A variant is not an option of dit-jax. If it wins, it moves into the code, with its figure in docs/performance.md;
otherwise it is deleted here.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from dit_jax.models import attention, layers


@dataclass(frozen=True)
class Variant:
    """What differs from the current code; `patch` names one of PATCHES."""

    assignments: tuple[str, ...] = ()
    patch: str = ""


@jax.custom_vjp
def two_kernels(x: jax.Array) -> jax.Array:
    """Layer norm of rows whose sums are kernels of their own. XLA's one kernel for all of it takes 32 rows at a time.

    That kernel took twice the time that memory needs for it where its input is also scaled and shifted (adaLN-Zero).
    The variance is E[x^2] - E[x]^2, as in Flax, which loses digits where the mean is far larger than the deviation.
    """
    return _two_kernels_forward(x)[0]


def _two_kernels_forward(x: jax.Array) -> tuple[jax.Array, Any]:
    mean, square = x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)
    mean, square = jax.lax.optimization_barrier((mean, square))
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + 1e-6)
    return (x - mean) * inverse, (x, mean, inverse)


def _two_kernels_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array]:
    x, mean, inverse = kept
    y = (x - mean) * inverse
    sums = jax.lax.optimization_barrier((gradient.mean(-1, keepdims=True), (gradient * y).mean(-1, keepdims=True)))
    return (inverse * (gradient - sums[0] - sums[1] * y),)


two_kernels.defvjp(_two_kernels_forward, _two_kernels_backward)


PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "": contextlib.nullcontext,
    "xla_attention": lambda: mock.patch.object(attention, "has_cudnn_attention", return_value=False),
    "two_kernels": lambda: mock.patch.object(layers, "_layer_norm", two_kernels),
}
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "XLA's attention": Variant(patch="xla_attention"),
    "norms in two kernels": Variant(patch="two_kernels"),
    "6 heads of 64": Variant(("model.num_heads=6",)),
    "no token: adaLN-Zero": Variant(("model.conditioning=adaln_zero",)),
}
