"""The Diffusion Transformer (Peebles & Xie 2023), conditioned on class and time by a token or by adaptive layer norm.

`conditioning='token'` (the report): one token MLP(sinusoid(t)) + MLP(class table) joins the patches and is dropped
before the output. `conditioning='adaln_zero'` (DiT): a sum of time and class embeddings gives each block its shifts,
scales and gates, which start at zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.models.attention import Attention
from dit_jax.models.embeddings import ClassEmbedding, TimeEmbedding, patchify, position_table, unpatchify
from dit_jax.models.layers import ACTIVATIONS, Dense, layer_norm

# Sizes from table 1 of the DiT paper; a preset adds the patch size, as in `DiT-XL/2`.
DIT_SIZES = {
    "S": dict(depth=12, width=384, num_heads=6),
    "B": dict(depth=12, width=768, num_heads=12),
    "L": dict(depth=24, width=1024, num_heads=16),
    "XL": dict(depth=28, width=1152, num_heads=16),
}
PRESETS: dict[str, dict[str, Any]] = {
    # The student report's model: 19.1 M parameters on CIFAR-10.
    "report": dict(
        patch_size=4, width=384, depth=12, num_heads=8, num_kv_heads=2, conditioning="token", positions="mae"
    ),
    # The demo's model: 1.25 M parameters.
    "demo": dict(
        patch_size=8, width=128, depth=4, num_heads=4, num_kv_heads=2, conditioning="adaln_zero", positions="grid"
    ),
    **{
        f"DiT-{size}/{patch}": dict(
            **shape, patch_size=patch, num_kv_heads=shape["num_heads"], conditioning="adaln_zero", positions="mae"
        )
        for size, shape in DIT_SIZES.items()
        for patch in (2, 4, 8)
    },
}
CONDITIONINGS = ("token", "adaln_zero")
POSITIONS = ("mae", "grid")


def modulate(x_BND: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    """Returns x (1 + scale) + shift, with the same scale and shift for every token."""
    return x_BND * (1 + scale_BD[:, None]) + shift_BD[:, None]


class Modulation(nn.Module):
    """Linear(SiLU(c)), zero at initialisation: conditioning [B, D] -> `parts` arrays [B, D]."""

    parts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, condition_BD: jax.Array) -> list[jax.Array]:
        features = self.parts * condition_BD.shape[-1]
        dense = Dense(features, kernel_init=nn.initializers.zeros, dtype=self.dtype)
        return jnp.split(dense(ACTIVATIONS["silu"](condition_BD)), self.parts, axis=-1)


class Mlp(nn.Module):
    """Two linear layers with a tanh GELU between them: [B, N, D] -> [B, N, D]."""

    ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        width = x_BND.shape[-1]
        hidden_BNF = Dense(self.ratio * width, dtype=self.dtype, result=self.dtype, with_gelu=True)(x_BND)
        return Dense(width, dtype=self.dtype, result=self.dtype)(hidden_BNF)


def dropout(x_BND: jax.Array, place: int, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes each value with probability `rate` and divides the others by 1 - rate (Srivastava et al. 2014).

    Without keys it changes nothing. Each image draws from its own key, whatever its batch, and independently at each
    `place` in a block.
    """
    if keys_B is None or rate == 0:
        return x_BND
    keep = lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x_BND.shape[1:])  # noqa: E731
    return jnp.where(jax.vmap(keep)(keys_B), x_BND / (1 - rate), 0)


def block_keys(keys_B: jax.Array | None, i: int | jax.Array) -> jax.Array | None:
    """Returns the keys of block i, or None if there are no keys."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)


class Block(nn.Module):
    """A transformer block: pre-norm attention and MLP, each added to the residual stream.

    With `adaptive`, the condition shifts and scales the input of both, and gates their output. `skip_BND` is an earlier
    block's output, which a linear layer first merges into the stream (Bao et al. 2023). `keys_B` has one key per image,
    for `dropout` on the outputs of attention and MLP (Vaswani et al. 2017).
    """

    num_heads: int
    num_kv_heads: int
    qk_norm: bool
    mlp_ratio: int
    dropout: float
    adaptive: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        condition_BD: jax.Array,
        skip_BND: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        attention = Attention(self.num_heads, self.num_kv_heads, self.qk_norm, self.dtype, name="attention")
        mlp = Mlp(self.mlp_ratio, self.dtype, name="mlp")
        if skip_BND is not None:
            x_BND = Dense(x_BND.shape[-1], dtype=self.dtype, name="skip")(jnp.concatenate([x_BND, skip_BND], axis=-1))
        drop = partial(dropout, rate=self.dropout, keys_B=keys_B)
        if not self.adaptive:
            x_BND = x_BND + drop(attention(layer_norm(x_BND)), 0)
            return x_BND + drop(mlp(layer_norm(x_BND)), 1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = Modulation(6, self.dtype, name="adaln")(condition_BD)
        x_BND = x_BND + gate_1[:, None] * drop(attention(modulate(layer_norm(x_BND), shift_1, scale_1)), 0)
        return x_BND + gate_2[:, None] * drop(mlp(modulate(layer_norm(x_BND), shift_2, scale_2)), 1)


class DiT(nn.Module):
    """Maps (x_t [B, H, W, C], t [B], labels [B]) to a prediction, float32 [B, H, W, C], zero at initialisation.

    t are timestep indices 0..T-1; labels are 0..num_classes-1, and num_classes for "no class". `keys_B` has one key per
    image, for `dropout` in training; without keys nothing is dropped. Label dropout is applied by the loss. Parameters
    are float32; matrix products are taken in `dtype`.

    With `long_skips`, block i of the second half also takes the output of its mirror, block depth - 1 - i (U-ViT, Bao
    et al. 2023); the one or two blocks in the middle neither give nor take one.
    With `gather`, this device holds only a share of each block's parameters, and gather(block name, share) returns the
    whole (see `apply_shares`).
    """

    num_classes: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    qk_norm: bool
    mlp_ratio: int
    long_skips: bool
    dropout: float
    conditioning: str
    class_table_width: int
    positions: str
    dtype: jnp.dtype
    remat: bool
    gather: Callable[[str, Any], Any] | None = None

    @nn.compact
    def __call__(
        self, x_BHWC: jax.Array, t_B: jax.Array, labels_B: jax.Array, keys_B: jax.Array | None = None
    ) -> jax.Array:
        _, H, W, C = x_BHWC.shape
        adaptive = self.conditioning == "adaln_zero"
        condition_BD = self._condition(t_B, labels_B)
        x_BND = self._embed_patches(x_BHWC)
        if not adaptive:
            x_BND = jnp.concatenate([x_BND, condition_BD[:, None]], axis=1)
        x_BND = layer_norm(self._blocks(x_BND, condition_BD, keys_B))
        if adaptive:
            x_BND = modulate(x_BND, *Modulation(2, self.dtype, name="final_adaln")(condition_BD))
        else:
            x_BND = x_BND[:, :-1]
        patches = Dense(self.patch_size**2 * C, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="final")(
            x_BND
        )
        return unpatchify(patches, self.patch_size, (H, W, C))

    @property
    def skips(self) -> int:
        """The number of blocks that give a long skip; as many take one."""
        return (self.depth - 1) // 2 if self.long_skips else 0

    def _blocks(self, x_BND: jax.Array, condition_BD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Returns the residual stream after all blocks."""
        settings: dict[str, Any] = dict(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            qk_norm=self.qk_norm,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            adaptive=self.conditioning == "adaln_zero",
            dtype=self.dtype,
        )
        if self.gather is not None:
            return self._scan_blocks(Block(**settings, parent=None), x_BND, condition_BD, keys_B)
        block, kept = nn.remat(Block) if self.remat else Block, []
        for i in range(self.depth):
            skip = kept.pop() if i >= self.depth - self.skips else None
            x_BND = block(**settings, name=f"block_{i}")(x_BND, condition_BD, skip, block_keys(keys_B, i))
            if i < self.skips:
                kept.append(x_BND)
        return x_BND

    def _scan_blocks(
        self, block: Block, x_BND: jax.Array, condition_BD: jax.Array, keys_B: jax.Array | None
    ) -> jax.Array:
        """Does the same from shares of the blocks' parameters, in scans that gather one block at a time.

        The backward pass gathers each block again and recomputes it, as `remat` does. Blocks that take a skip have one
        more layer, and blocks that give one also return their output, so givers, the middle and takers are three scans.
        """
        gather, skips = self.gather, self.skips
        assert gather is not None

        def scan(x_BND: jax.Array, first: int, end: int, skips_LBND: Any = None) -> tuple[jax.Array, Any]:
            gives = end <= skips

            def step(x_BND: jax.Array, of_block: Any) -> tuple[jax.Array, jax.Array | None]:
                share, i, skip_BND = of_block
                params = {"params": gather(f"block_{first}", share)}
                x_BND = cast(jax.Array, block.apply(params, x_BND, condition_BD, skip_BND, block_keys(keys_B, i)))
                return x_BND, x_BND if gives else None

            shares = [self.variables["params"][f"block_{i}"] for i in range(first, end)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shares)
            step = jax.checkpoint(step, prevent_cse=False)
            return jax.lax.scan(step, x_BND, (stacked, jnp.arange(first, end), skips_LBND))

        if not skips:
            return scan(x_BND, 0, self.depth)[0]
        x_BND, kept_LBND = scan(x_BND, 0, skips)
        x_BND, _ = scan(x_BND, skips, self.depth - skips)
        return scan(x_BND, self.depth - skips, self.depth, kept_LBND[::-1])[0]

    def _condition(self, t_B: jax.Array, labels_B: jax.Array) -> jax.Array:
        """Returns the sum of the time and class embeddings, [B, D]."""
        if self.conditioning == "adaln_zero":
            time = TimeEmbedding(self.width, "silu", nn.initializers.normal(0.02), self.dtype, name="time")
            label = ClassEmbedding(self.num_classes, self.width, 0, self.dtype, name="label")
        else:
            time = TimeEmbedding(self.width, "gelu", nn.initializers.xavier_uniform(), self.dtype, name="time")
            label = ClassEmbedding(self.num_classes, self.width, self.class_table_width, self.dtype, name="label")
        return time(t_B) + label(labels_B)

    def _embed_patches(self, x_BHWC: jax.Array) -> jax.Array:
        """Embeds the raw pixels linearly (without a norm: brightness is information) and adds the positions."""
        _, H, W, _ = x_BHWC.shape
        x_BND = Dense(self.width, dtype=self.dtype, name="patch")(patchify(x_BHWC, self.patch_size))
        positions = position_table(H // self.patch_size, W // self.patch_size, self.width, self.positions)
        return x_BND + jnp.asarray(positions)[None]


def apply_shares(
    model: DiT, gather: Callable[[Any, Any], Any], axes: Any, shares: Any, *inputs: jax.Array
) -> jax.Array:
    """Runs `model.apply` from one device's shares of the parameters; `gather(shares, axes)` returns whole parameters.

    `axes` is a tree like the parameters. The blocks are gathered one by one, everything else at once.
    """
    shares, axes = shares["params"], axes["params"]
    is_block = lambda name: name.startswith("block_")  # noqa: E731
    mixed = {name: part if is_block(name) else gather(part, axes[name]) for name, part in shares.items()}
    by_block = model.clone(gather=lambda block, share: gather(share, axes[block]))
    return cast(jax.Array, by_block.apply({"params": mixed}, *inputs))
