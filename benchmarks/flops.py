"""Counts the floating-point operations of the network's matrix products from its shape; a multiply-add is two.

The count is exact. Norms, activations, softmax, the optimizer and the averaging are not counted, as usual for "model
FLOPs utilisation": they are work, but work that needs no matrix unit.
"""

from dit_jax.models.dit import DiT
from dit_jax.models.embeddings import TIME_FREQUENCIES

TRAINING = 3  # the backward pass has two products per product of the forward pass: by the operand and by the kernel


def tokens(model: DiT, image_shape: tuple[int, int, int]) -> int:
    """Returns the number of patches per image, plus one if the condition is a token."""
    H, W, _ = image_shape
    return H // model.patch_size * (W // model.patch_size) + (model.conditioning == "token")


def block(model: DiT, N: int) -> int:
    """Returns the FLOPs of one block on `N` tokens."""
    D, K = model.width, model.num_kv_heads
    E = D // model.num_heads
    qkv = 2 * N * D * (D + 2 * K * E)
    scores_and_values = 2 * (2 * model.num_heads * N * N * E)
    out = 2 * N * D * D
    mlp = 2 * (2 * N * D * model.mlp_ratio * D)
    adaln = 2 * D * 6 * D if model.conditioning == "adaln_zero" else 0
    return qkv + scores_and_values + out + mlp + adaln


def condition(model: DiT) -> int:
    """Returns the FLOPs of the time and class vector; the table's look-up is none, its gradient too small to count."""
    D = model.width
    time = 2 * (TIME_FREQUENCIES * D + D * D)
    label = 2 * (model.class_table_width * D + D * D) if model.conditioning == "token" else 0
    return time + label


def forward(model: DiT, image_shape: tuple[int, int, int]) -> int:
    """Returns the FLOPs of one evaluation of the network on one image."""
    H, W, C = image_shape
    D = model.width
    embed = 2 * H * W * C * D  # N patches of P * P * C values
    final_adaln = 2 * D * 2 * D if model.conditioning == "adaln_zero" else 0
    N = tokens(model, image_shape)
    blocks = model.depth * block(model, N) + model.skips * 2 * N * 2 * D * D
    return 2 * embed + final_adaln + condition(model) + blocks  # the output layer costs as much as the embedding


def training(model: DiT, image_shape: tuple[int, int, int]) -> int:
    """Returns the FLOPs of one image in one train step: three times the forward pass."""
    return TRAINING * forward(model, image_shape)


def sampling(model: DiT, image_shape: tuple[int, int, int], evaluations: int, guided: bool) -> int:
    """Returns the FLOPs of one image drawn with `evaluations` of the network; guidance doubles them."""
    return forward(model, image_shape) * evaluations * (2 if guided else 1)
