"""The project's own classifier: a small residual network that knows how noisy its image is.

Its features stand in for Inception's where those weights are not at hand; as it was trained at every noise level, its
gradients also guide samplers (`sample.classifier_scale`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.models.embeddings import TimeEmbedding
from dit_jax.models.layers import ACTIVATIONS, Conv3x3, Dense

STAGES = 3  # each has half the resolution and twice the width of the one before
GROUP_WIDTH = 8  # channels that share a mean and a variance (Wu & He 2018 have 16, of wider layers)


class ClassifierOutput(NamedTuple):
    """features [B, 4 width], the last layer's average over the image; logits [B, classes]. Both float32."""

    features: jax.Array
    logits: jax.Array


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of it, the time [B, D] added between: [B, H, W, C] -> [B, H, W, features].

    Norm and activation come before each convolution (He et al. 2016b). Where the width or, by `stride`,
    the size changes, the shortcut is a 1x1 convolution.
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
    """Group norm, then SiLU. Called within a module, whose child the norm becomes."""
    return nn.silu(nn.GroupNorm(num_groups=None, group_size=GROUP_WIDTH)(x_BHWC))


class Classifier(nn.Module):
    """(x_t [B, H, W, C] in about [-1, 1], t [B]) -> features and logits; t are the DiT's timestep indices 0..T-1.

    A clean image has t = 0, whose noise no eye sees. Of any batch each image is seen alone: the norms are of groups of
    channels. `width` is that of the first stage, a multiple of 8; `depth` counts the blocks of each stage.
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
