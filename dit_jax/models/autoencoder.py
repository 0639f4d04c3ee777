"""The autoencoder of latent diffusion, which maps images to a smaller grid of latents and back.

The network is the AutoencoderKL of Stable Diffusion and diffusers; with `downsample` 8, 4 channels, width 128 and depth
2 it has exactly their sizes. Source: Rombach et al. 2022, section 3.1 and its code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.models.layers import Conv3x3, Dense

DOWNSAMPLES = (2, 4, 8)
WIDEST = 4  # stages double their width up to this multiple of the first stage's
GROUPS = 32  # most groups in a group norm, each of at least 4 channels
FLOAT32 = jnp.dtype("float32")
LOG_VARIANCE = (-30.0, 20.0)  # a latent's log variance is clipped to this range


class Codec(NamedTuple):
    """Maps images to the arrays that are diffused, and back; both functions take the arrays `weights`.

    encode(weights, images [B, H, W, C] in [-1, 1]) -> [B, h, w, c]; decode(weights, [..., h, w, c]) -> images.
    """

    encode: Callable[[Any, jax.Array], jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    weights: Any = ()


PIXELS = Codec(lambda _, x: x, lambda _, x: x)  # the identity, to diffuse the images themselves


class AutoencoderOutput(NamedTuple):
    """images [B, H, W, C], decoded from noisy latents; kl_B [B], the KL of each image's latents from N(0, I), nats."""

    images: jax.Array
    kl_B: jax.Array


def stage_widths(width: int, downsample: int) -> tuple[int, ...]:
    """Returns the channels of each stage, finest first; the size halves between stages: downsample = 2^(stages - 1)."""
    return tuple(width * min(2**stage, WIDEST) for stage in range(downsample.bit_length()))


def activate(x_BHWC: jax.Array, groups: int, name: str) -> jax.Array:
    """Applies group norm, then SiLU. Call it within a module: the norm becomes that module's child `name`."""
    return nn.silu(nn.GroupNorm(num_groups=groups, epsilon=1e-6, name=name)(x_BHWC))


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, each after norm and SiLU: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        hidden = Conv3x3(self.features, name="conv1")(activate(x_BHWC, self.groups, "norm1"))
        hidden = Conv3x3(self.features, name="conv2")(activate(hidden, self.groups, "norm2"))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Dense(self.features, FLOAT32, name="conv_shortcut")(x_BHWC)
        return x_BHWC + hidden


class Attention(nn.Module):
    """Residual single-head self-attention over all positions of an image: [B, H, W, C] -> [B, H, W, C]."""

    groups: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        tokens_BNC = nn.GroupNorm(num_groups=self.groups, epsilon=1e-6, name="group_norm")(x_BHWC).reshape(B, H * W, C)
        q_BNC, k_BNC, v_BNC = (Dense(C, FLOAT32, name=name)(tokens_BNC) for name in ("to_q", "to_k", "to_v"))
        weights_BNM = jax.nn.softmax(jnp.einsum("bnc,bmc->bnm", q_BNC, k_BNC) / np.float32(np.sqrt(C)), axis=-1)
        seen_BNC = jnp.einsum("bnm,bmc->bnc", weights_BNM, v_BNC)
        return x_BHWC + Dense(C, FLOAT32, name="to_out")(seen_BNC).reshape(B, H, W, C)


def middle(x_BHWC: jax.Array, groups: int) -> jax.Array:
    """Applies a block, attention and another block. Call it within a module: they become that module's children."""
    features = x_BHWC.shape[-1]
    x_BHWC = Attention(groups, name="attention")(Block(features, groups, name="mid_0")(x_BHWC))
    return Block(features, groups, name="mid_1")(x_BHWC)


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, H / downsample, W / downsample, features]."""

    widths: tuple[int, ...]
    depth: int
    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv3x3(self.widths[0], name="conv_in")(x)
        for stage, width in enumerate(self.widths):
            for i in range(self.depth):
                x = Block(width, self.groups, name=f"down_{stage}_{i}")(x)
            if stage + 1 < len(self.widths):
                x = Conv3x3(width, stride=2, before=0, name=f"downsample_{stage}")(x)
        x = activate(middle(x, self.groups), self.groups, "conv_norm_out")
        return Conv3x3(self.features, name="conv_out")(x)


class Decoder(nn.Module):
    """[B, h, w, c] -> images [B, downsample h, downsample w, features]."""

    widths: tuple[int, ...]
    depth: int
    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = middle(Conv3x3(self.widths[-1], name="conv_in")(x), self.groups)
        for stage, width in enumerate(reversed(self.widths)):
            for i in range(self.depth + 1):
                x = Block(width, self.groups, name=f"up_{stage}_{i}")(x)
            if stage + 1 < len(self.widths):
                x = Conv3x3(width, name=f"upsample_{stage}")(x.repeat(2, axis=1).repeat(2, axis=2))
        return Conv3x3(self.features, name="conv_out")(activate(x, self.groups, "conv_norm_out"))


class Autoencoder(nn.Module):
    """Maps (x [B, H, W, C] in [-1, 1], eps [B, h, w, c] ~ N(0, I)) to x decoded from mean + std eps, and to the KL.

    `width` is the number of channels of the first stage: a multiple of 4 up to 128, and of 32 above. `depth` is the
    number of blocks in each stage of the encoder; the decoder has one more.
    """

    image_channels: int
    downsample: int
    channels: int
    width: int
    depth: int

    def setup(self) -> None:
        widths, groups = stage_widths(self.width, self.downsample), min(GROUPS, self.width // 4)
        self.encoder = Encoder(widths, self.depth, 2 * self.channels, groups)
        self.decoder = Decoder(widths, self.depth, self.image_channels, groups)
        self.quant_conv = Dense(2 * self.channels, FLOAT32)
        self.post_quant_conv = Dense(self.channels, FLOAT32)

    def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mean and the log variance of each latent, [B, h, w, c] each."""
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes latents [B, h, w, c] to images [B, H, W, C] in about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x: jax.Array, eps: jax.Array) -> AutoencoderOutput:
        mean, log_variance = self.moments(x)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)  # Kingma & Welling 2014, appendix B
        images = self.decode(mean + jnp.exp(0.5 * log_variance) * eps)
        return AutoencoderOutput(images, kl.sum((1, 2, 3)))
