"""Other ways to compute a train step, to be timed on a GPU by trials.py: settings, and patches of the code.

A variant is not an option of dit-jax. If it wins, it moves into the code, with its figure in docs/performance.md;
otherwise it is deleted here.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import row_kernels, short_attention
from dit_jax.models import attention, dit, layers


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def biased_in_product(rows_RF: jax.Array, bias_F: jax.Array, result: jnp.dtype, with_gelu: bool) -> jax.Array:
    """Computes `layers.biased` such that cuBLASLt's product also adds the bias and takes GELU, if `result` is bfloat16.

    XLA recognises both only in the dtype of the product, and if nothing needs the product without its bias. So the bias
    is rounded too, and the sum is what is kept; cuBLASLt computes in float32 what is written as bfloat16 here.
    """
    return _biased_in_product_forward(rows_RF, bias_F, result, with_gelu)[0]


def _biased_in_product_forward(
    rows_RF: jax.Array, bias_F: jax.Array, result: jnp.dtype, with_gelu: bool
) -> tuple[jax.Array, Any]:
    if result != jnp.bfloat16:
        return layers._biased_forward(rows_RF, bias_F, result, with_gelu)
    x_RF = rows_RF + bias_F.astype(result)[None]
    return (jax.nn.gelu(x_RF, approximate=True), (x_RF, jnp.zeros_like(bias_F))) if with_gelu else (x_RF, None)


biased_in_product.defvjp(_biased_in_product_forward, layers._biased_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def biased_with_sums(rows_RF: jax.Array, bias_F: jax.Array, result: jnp.dtype, with_gelu: bool) -> jax.Array:
    """Computes `biased_in_product`, the gradient of GELU by a kernel that also sums it for the bias."""
    return _biased_in_product_forward(rows_RF, bias_F, result, with_gelu)[0]


def _biased_with_sums_backward(
    result: jnp.dtype, with_gelu: bool, kept: Any, gradient_RF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if result == jnp.bfloat16 and with_gelu:
        return row_kernels.gelu_backward(kept[0], gradient_RF)
    return layers._biased_backward(result, with_gelu, kept, gradient_RF)


biased_with_sums.defvjp(_biased_in_product_forward, _biased_with_sums_backward)


def patched(*targets: tuple[Any, str, Any]) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Returns what replaces, in a `with`, the attribute of each (object, attribute, replacement)."""

    @contextlib.contextmanager
    def replaced() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for target in targets:
                stack.enter_context(mock.patch.object(*target))
            yield

    return replaced


SHORT_ATTENTION = (dit, "Attention", short_attention.Attention)
ROW_NORMS = (dit, "Block", row_kernels.Block)
TWO_KERNELS = (layers, "_layer_norm", two_kernels)
WITH_SUMS = (layers, "biased", biased_with_sums)
PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "": patched(),
    "xla_attention": patched((attention, "has_cudnn_attention", lambda: False)),
    "two_kernels": patched(TWO_KERNELS),
    "short_attention": patched(SHORT_ATTENTION),
    "in_product": patched((layers, "biased", biased_in_product)),
    "with_sums": patched(WITH_SUMS),
    "row_norms": patched(ROW_NORMS),
    "all": patched(SHORT_ATTENTION, ROW_NORMS, TWO_KERNELS, WITH_SUMS),
}
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "attention in one kernel": Variant(patch="short_attention"),
    "norms in two kernels": Variant(patch="two_kernels"),
    "norms in one kernel": Variant(patch="row_norms"),
    "bias and GELU in the product": Variant(patch="in_product"),
    "GELU's sums as well": Variant(patch="with_sums"),
    "all": Variant(patch="all"),
    "6 heads of 64": Variant(("model.num_heads=6",)),
    "no token: adaLN-Zero": Variant(("model.conditioning=adaln_zero",)),
}
