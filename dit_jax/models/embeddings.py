"""Patches, and the embeddings of what enters the network besides pixels: patch position, timestep and class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dit_jax.models.layers import ACTIVATIONS, Dense

TIME_FREQUENCIES = 256  # width of sinusoid(t), as in the DiT code


def patchify(x_BHWC: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images [B, H, W, C] into patches [B, N, P * P * C], each with its pixels in (row, column, channel) order.

    Raises ValueError if the patch size does not divide H and W.
    """
    if x_BHWC.shape[1] % patch_size or x_BHWC.shape[2] % patch_size:
        raise ValueError(f"patches of {patch_size} do not divide images of {x_BHWC.shape[1]} x {x_BHWC.shape[2]}")
    return rearrange(x_BHWC, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: jax.Array, patch_size: int, image_shape: tuple[int, int, int]) -> jax.Array:
    """Inverts `patchify` for images of `image_shape` (H, W, C)."""
    height = image_shape[0] // patch_size
    return rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", h=height, p=patch_size, q=patch_size)


def sinusoid(t_B: jax.Array, width: int = TIME_FREQUENCIES, max_period: float = 10_000.0) -> jax.Array:
    """Embeds timesteps [B] as [cos(t w_i), sin(t w_i)], w_i = max_period^(-2i / width): float32 [B, width].

    Raises ValueError for an odd width.
    Source: DDPM (Ho et al. 2020), appendix B, with cosines first, as in the DiT code.
    """
    if width % 2:
        raise ValueError(f"an embedding of width {width}; use an even one")
    half = width // 2
    frequencies = jnp.asarray(np.exp(-np.log(max_period) * np.arange(half) / half), jnp.float32)
    angles = t_B.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def axis_frequencies(kind: str, count: int, cells: int) -> np.ndarray:
    """Returns angular frequencies [count] along an axis of `cells` patches, in radians per patch.

    `mae`: 10,000^(-i / count), as in MAE and DiT. `grid`: wavelengths spaced geometrically from twice the axis down to
    two patches, where the sine is 0 at every patch. An axis of one patch counts as two.
    """
    if kind == "mae":
        return 10_000.0 ** (-np.arange(count) / count)
    longest = 2.0 * max(cells, 2)
    wavelengths = longest * (2.0 / longest) ** (np.arange(count) / max(count - 1, 1))
    return 2 * np.pi / wavelengths


def position_table(height: int, width: int, features: int, kind: str = "mae") -> np.ndarray:
    """Returns fixed 2-D sin-cos position embeddings: float32 [height * width, features], patches in row-major order.

    The first half of the features encodes the column, the second half the row, each as [sin, cos].
    Source: MAE (He et al. 2022), `get_2d_sincos_pos_embed`, which DiT uses.
    """
    count = features // 4
    columns = np.arange(width)[:, None] * axis_frequencies(kind, count, width)
    rows = np.arange(height)[:, None] * axis_frequencies(kind, count, height)
    column_table = np.concatenate([np.sin(columns), np.cos(columns)], axis=1)
    row_table = np.concatenate([np.sin(rows), np.cos(rows)], axis=1)
    return np.concatenate(
        [np.tile(column_table, (height, 1)), np.repeat(row_table, width, axis=0)], axis=1, dtype=np.float32
    )


class TimeEmbedding(nn.Module):
    """MLP(sinusoid(t)): timesteps [B] -> [B, D]."""

    width: int
    activation: str
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t_B: jax.Array) -> jax.Array:
        hidden = Dense(self.width, self.dtype, self.kernel_init)(sinusoid(t_B))
        return Dense(self.width, self.dtype, self.kernel_init)(ACTIVATIONS[self.activation](hidden))


@jax.custom_vjp
def rows_of(table_ND: jax.Array, index_B: jax.Array) -> jax.Array:
    """Returns table[index], whose gradient is a matrix product, as a GPU's scatter-add is not deterministic.

    It supports neither forward-mode derivatives with respect to the table nor `shard_map(check_vma=True)`.
    """
    return jnp.take(table_ND, index_B, axis=0)


def _rows_forward(table_ND: jax.Array, index_B: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rows_of(table_ND, index_B), (table_ND, index_B)


def _rows_backward(kept: tuple[jax.Array, jax.Array], gradient_BD: jax.Array) -> tuple[jax.Array, None]:
    table_ND, index_B = kept
    of_row_BN = jax.nn.one_hot(index_B, len(table_ND), dtype=gradient_BD.dtype)
    return jnp.einsum("BN,BD->ND", of_row_BN, gradient_BD, precision="highest"), None


rows_of.defvjp(_rows_forward, _rows_backward)


class Embed(nn.Embed):
    """Flax's embedding with `rows_of` as its lookup: int [B] -> float32 [B, D]."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return rows_of(self.embedding, inputs)


class ClassEmbedding(nn.Module):
    """A table with one row per class and a last one for "no class" (index num_classes): labels [B] -> [B, D].

    With a nonzero `table_width`, rows have that width and pass through an MLP with GELU (the report); with 0 they are
    the embedding itself (DiT).
    """

    num_classes: int
    width: int
    table_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, labels_B: jax.Array) -> jax.Array:
        if not self.table_width:
            return Embed(self.num_classes + 1, self.width, embedding_init=nn.initializers.normal(0.02))(labels_B)
        rows = Embed(self.num_classes + 1, self.table_width, embedding_init=nn.initializers.normal(1.0))(labels_B)
        hidden = Dense(self.width, self.dtype)(rows)
        return Dense(self.width, self.dtype)(ACTIVATIONS["gelu"](hidden))
