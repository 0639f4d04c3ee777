"""The report's network in plain PyTorch, written only for `benchmarks`, to compare our speed with.

It has token conditioning, grouped-query attention, and pre-norm blocks without affine norms; the same shapes, and so
the same products, as `dit_jax.models.dit.DiT(conditioning='token')`. Attention is PyTorch's own fused one.
"""

# pyright: reportMissingImports=false

import torch
from torch import nn
from torch.nn import functional as F

TIME_FREQUENCIES = 256


def sinusoid(t: torch.Tensor) -> torch.Tensor:
    """Returns [cos(t w_i), sin(t w_i)]: [B] -> [B, 256]."""
    half = TIME_FREQUENCIES // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(side: int, width: int) -> torch.Tensor:
    """Returns fixed 2-D sin-cos positions, [side * side, width]; their values do not affect the speed."""
    angles = torch.arange(side)[:, None] * 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([table.repeat(side, 1), table.repeat_interleave(side, dim=0)], dim=1)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream: [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, kv_heads: int, mlp_ratio: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.norm_1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]."""
        B, N, D = x.shape
        sizes = [count * self.head_width for count in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (
            part.view(B, N, -1, self.head_width).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(sizes, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(B, N, D))
        return x + self.mlp(self.norm_2(x))


class TorchDiT(nn.Module):
    """(x_t [B, C, H, W], t [B], labels [B]) -> prediction [B, C, H, W]."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int,
        mlp_ratio: int,
        class_table_width: int,
    ):
        super().__init__()
        side, _, channels = image_shape
        self.patch_size, self.grid, self.channels = patch_size, side // patch_size, channels
        self.patch = nn.Linear(patch_size**2 * channels, width)
        self.register_buffer("positions", grid_positions(self.grid, width))
        self.time = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.table = nn.Embedding(num_classes + 1, class_table_width)
        self.label = nn.Sequential(nn.Linear(class_table_width, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, num_kv_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final = nn.Linear(width, patch_size**2 * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The prediction, of the input's shape."""
        B, P, G = len(x), self.patch_size, self.grid
        patches = x.reshape(B, self.channels, G, P, G, P).permute(0, 2, 4, 3, 5, 1).reshape(B, G * G, -1)
        condition = self.time(sinusoid(t)) + self.label(self.table(labels))
        stream = torch.cat([self.patch(patches) + self.positions, condition[:, None]], dim=1)
        for block in self.blocks:
            stream = block(stream)
        out = self.final(self.norm(stream[:, :-1])).view(B, G, G, P, P, self.channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class DiffusersDiT(nn.Module):
    """`diffusers`' DiTTransformer2DModel of the same width, depth, heads and patches, called as TorchDiT is.

    It is the original DiT: adaptive norms (with a separate time embedding in every block) and as many key/value heads
    as query heads. So it does more work per image than the report's network.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        **_: int,
    ):
        super().__init__()
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        self.network = DiTTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=width // num_heads,
            in_channels=image_shape[2],
            out_channels=image_shape[2],
            num_layers=depth,
            sample_size=image_shape[0],
            patch_size=patch_size,
            num_embeds_ada_norm=num_classes,
            dropout=0.0,
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The prediction, of the input's shape."""
        return self.network(x, timestep=t, class_labels=labels, return_dict=False)[0]


NETWORKS = {"plain": TorchDiT, "diffusers": DiffusersDiT}
