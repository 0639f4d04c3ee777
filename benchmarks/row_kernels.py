"""Kernels by rows for NVIDIA GPUs: variants to be timed (variants.py). Memory bounds them, and XLA's move more.

**Layer norm** adds the residual in the same kernel; so does its gradient, where XLA reads the norm's input twice and
recomputes what earlier norms added. **GELU's gradient** is summed for the bias by the kernel that computes it.

They are written in Pallas for its Triton backend, which JAX 0.11 deprecates but has. CPUs interpret them.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from dit_jax.models import dit
from dit_jax.models.layers import Dense, gelu_gradient

Pair = tuple[jax.Array, jax.Array]

WARPS = 4  # per program
TALL = 8  # rows of a program of layer norm, each as wide as the next power of two
ROWS, COLUMNS = 64, 128  # of a program of GELU's gradient


def run(kernel: Any, inputs: Sequence[jax.Array], outputs: Sequence[Any], **more: Any) -> Any:
    """Runs a kernel, interpreted on CPUs. Returns arrays like `outputs`."""
    made = functools.partial(
        pl.pallas_call,
        kernel,
        out_shape=tuple(outputs),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        **more,
    )
    return jax.lax.platform_dependent(*inputs, cpu=made(interpret=True), default=made())


def there(row: jax.Array, column: jax.Array, limits: tuple[int, int]) -> jax.Array:
    """Returns which elements of a tile are in an array whose sizes are `limits`."""
    return (row < limits[0])[:, None] & (column < limits[1])[None]


def load(refs: Sequence[Any], mask: jax.Array) -> list[jax.Array]:
    """Returns the tiles in float32, zeros outside."""
    return [triton.load(ref, mask=mask, other=0.0).astype(jnp.float32) for ref in refs]


def store(refs: Sequence[Any], mask: jax.Array, values: Sequence[jax.Array]) -> None:
    """Stores tiles, each in the dtype of its array."""
    for ref, value in zip(refs, values, strict=True):
        triton.store(ref, value.astype(ref.dtype), mask=mask)


def rows_there(ref: Any, limits: tuple[int, int]) -> jax.Array:
    """Returns which elements of this program's rows are inside."""
    return there(pl.program_id(0) * TALL + jnp.arange(TALL), jnp.arange(ref.shape[-1]), limits)


def normalised(x: jax.Array, mask: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns (layer norm of the rows, one over their standard deviation [rows, 1])."""
    centred = jnp.where(mask, x - x.sum(1, keepdims=True) / width, 0.0)
    inverse = jax.lax.rsqrt((centred * centred).sum(1, keepdims=True) / width + 1e-6)
    return centred * inverse, inverse


def norm_kernel(*refs: Any, limits: tuple[int, int], terms: int) -> None:
    """Stores the layer norm of the sum of its inputs; if there are two, also the sum."""
    inputs, outputs = refs[:terms], refs[terms:]
    mask = rows_there(refs[0], limits)
    x = functools.reduce(jnp.add, load(inputs, mask))
    store(outputs, mask, (normalised(x, mask, limits[1])[0], x)[:terms])


def norm_gradient_kernel(x_ref: Any, by_y_ref: Any, by_sum_ref: Any, *by_refs: Any, limits: tuple[int, int]) -> None:
    """Adds the gradient through the norm to that of the sum, and stores it for each term."""
    mask = rows_there(x_ref, limits)
    x, by_y, by_sum = load((x_ref, by_y_ref, by_sum_ref), mask)
    y, inverse = normalised(x, mask, limits[1])
    mean, along = (one.sum(1, keepdims=True) / limits[1] for one in (by_y, by_y * y))
    store(by_refs, mask, [by_sum + inverse * (by_y - mean - along * y)] * len(by_refs))


def run_rows(kernel: Any, inputs: Sequence[jax.Array], dtypes: Sequence[Any], **more: Any) -> Any:
    """Runs a kernel on [B, N, D] arrays, row by row."""
    shape, width = inputs[0].shape, inputs[0].shape[-1]
    rows = inputs[0].size // width
    block = pl.BlockSpec((TALL, pl.next_power_of_2(width)), lambda i: (i, 0))
    found = run(
        functools.partial(kernel, limits=(rows, width), **more),
        [x.reshape(rows, width) for x in inputs],
        [jax.ShapeDtypeStruct((rows, width), dtype) for dtype in dtypes],
        grid=(pl.cdiv(rows, TALL),),
        in_specs=[block] * len(inputs),
        out_specs=(block,) * len(dtypes),
        name=kernel.__name__,
    )
    return [one.reshape(shape) for one in found]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_and_norm(x_BND: jax.Array, term_BND: jax.Array | None, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns x + term, or x without a term, in float32, and its layer norm in `dtype`; x is float32."""
    return _add_and_norm_forward(x_BND, term_BND, dtype)[0]


def _add_and_norm_forward(x_BND: jax.Array, term_BND: jax.Array | None, dtype: Any) -> Any:
    if term_BND is None:
        y_BND = run_rows(norm_kernel, [x_BND], [dtype], terms=1)[0]
        return (x_BND, y_BND), (x_BND, None)
    y_BND, sum_BND = run_rows(norm_kernel, [x_BND, term_BND], [dtype, jnp.float32], terms=2)
    return (sum_BND, y_BND), (sum_BND, term_BND[:0])  # of the term only its dtype is needed


def _add_and_norm_backward(_: Any, kept: Any, gradients: Any) -> tuple[jax.Array, jax.Array | None]:
    sum_BND, empty = kept
    dtypes = [jnp.float32]
    if empty is not None and empty.dtype != jnp.float32:
        dtypes.append(empty.dtype)
    found = run_rows(norm_gradient_kernel, [sum_BND, gradients[1], gradients[0]], dtypes)
    return found[0], None if empty is None else found[-1]


add_and_norm.defvjp(_add_and_norm_forward, _add_and_norm_backward)


def gelu_kernel(x_ref: Any, gradient_ref: Any, by_x_ref: Any, sums_ref: Any, *, limits: tuple[int, int]) -> None:
    """Computes the gradient of a tile, and its sums by column."""
    row, column = pl.program_id(0) * ROWS + jnp.arange(ROWS), pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS)
    mask = there(row, column, limits)
    by_x = gelu_gradient(*load((x_ref, gradient_ref), mask)).astype(by_x_ref.dtype)
    store([by_x_ref], mask, [by_x])
    store([sums_ref], column < limits[1], [by_x.astype(jnp.float32).sum(0)])


def gelu_backward(x_RF: jax.Array, gradient_RF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient with respect to x [R, F], in the dtype of x, and the float32 sums of its columns [F]."""
    R, F = x_RF.shape
    grid = pl.cdiv(R, ROWS), pl.cdiv(F, COLUMNS)
    block = pl.BlockSpec((ROWS, COLUMNS), lambda i, j: (i, j))
    by_x_RF, sums = run(
        functools.partial(gelu_kernel, limits=(R, F)),
        [x_RF, gradient_RF],
        [jax.ShapeDtypeStruct((R, F), x_RF.dtype), jax.ShapeDtypeStruct((grid[0], F), jnp.float32)],
        grid=grid,
        in_specs=[block, block],
        out_specs=(block, pl.BlockSpec((None, COLUMNS), lambda i, j: (i, j))),
        name=gelu_kernel.__name__,
    )
    return by_x_RF, sums.sum(0)


class Block(dit.Block):
    """A transformer block with these layer norms, unless it is adaptive (there XLA moves less); then as it is."""

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        condition_BD: jax.Array,
        skip_BND: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        if self.adaptive:
            return super().__call__(x_BND, condition_BD, skip_BND, keys_B)
        attention = dit.Attention(self.num_heads, self.num_kv_heads, self.qk_norm, self.dtype, name="attention")
        mlp = dit.Mlp(self.mlp_ratio, self.dtype, name="mlp")
        if skip_BND is not None:
            x_BND = Dense(x_BND.shape[-1], dtype=self.dtype, name="skip")(jnp.concatenate([x_BND, skip_BND], axis=-1))
        drop = functools.partial(dit.dropout, rate=self.dropout, keys_B=keys_B)
        x_BND, y_BND = cast(Pair, add_and_norm(x_BND, None, self.dtype))
        x_BND, y_BND = cast(Pair, add_and_norm(x_BND, drop(attention(y_BND), 0), self.dtype))
        return x_BND + drop(mlp(y_BND), 1)
