"""The project's own classifier: a small residual network that is conditioned on the timestep of its noisy input.

Its features replace Inception's where those weights are not available. Because it is trained at every noise level, its
gradients can also guide samplers (`sample.classifier_scale`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.models.embeddings import TimeEmbedding
from dit_jax.models.layers import ACTIVATIONS, Conv3x3, Dense

STAGES = 3  # each has half the resolution and twice the width of the one before
GROUP_WIDTH = 8  # channels per group of the group norm (Wu & He 2018 have 16, in wider layers)


class ClassifierOutput(NamedTuple):
    """features [B, 4 width], the last layer averaged over the image; logits [B, classes]. Both are float32."""

    features: jax.Array
    logits: jax.Array


class ResidualBlock(nn.Module):
    """A residual block of two 3x3 convolutions: [B, H, W, C] -> [B, H / stride, W / stride, features].

    The time embedding [B, D] is projected and added between them. Norm and activation come before each convolution
    (He et al. 2016b). Where the width or, with `stride`, the size changes, the shortcut is a 1x1 convolution.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, time_BD: jax.Array) -> jax.Array:
        float32 = jnp.dtype("float32")
        hidden = activate(x_BHWC)
        shortcut = x_BHWC
        if x_BHWC.shape[-1] != self.features or self.stride > 1:
            every_second = hidden[:, :: self.stride, :: self.stride]
            shortcut = Dense(self.features, float32, name="shortcut")(every_second)
        hidden = Conv3x3(self.features, self.stride, name="conv_1")(hidden)
        hidden = hidden + Dense(self.features, float32, name="time")(time_BD)[:, None, None]
        hidden = Conv3x3(self.features, kernel_init=nn.initializers.zeros, name="conv_2")(activate(hidden))
        return shortcut + hidden


def activate(x_BHWC: jax.Array) -> jax.Array:
    """Applies group norm, then SiLU. Call it within a module: the norm becomes that module's child."""
    return nn.silu(nn.GroupNorm(num_groups=None, group_size=GROUP_WIDTH)(x_BHWC))


class Classifier(nn.Module):
    """Maps (x_t [B, H, W, C] in about [-1, 1], t [B]) to features and logits; t is the DiT's timestep index, 0..T-1.

    Clean images take t = 0, whose noise is too weak to see. Images of a batch do not affect one another, as the norms
    are over groups of channels. `width` is the number of channels of the first stage, a multiple of 8; `depth` is the
    number of blocks in each stage.
    """

    num_classes: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array) -> ClassifierOutput:
        time = TimeEmbedding(2 * self.width, "silu", nn.initializers.xavier_uniform(), jnp.dtype("float32"))
        time_BD = ACTIVATIONS["silu"](time(t_B))
        x_BHWC = Conv3x3(self.width, 2, name="stem")(x_BHWC)
        for stage in range(STAGES):
            for i in range(self.depth):
                stride = 2 if stage and not i else 1
                x_BHWC = ResidualBlock(2**stage * self.width, stride, name=f"block_{stage}_{i}")(x_BHWC, time_BD)
        features = activate(x_BHWC).mean((1, 2))
        return ClassifierOutput(features, Dense(self.num_classes, jnp.dtype("float32"), name="head")(features))
