"""The Inception-v3 of FID: the network of TensorFlow's 2015 graph, whose features give distances between images.

It differs from the published Inception-v3: average pools leave padding out of the count they divide by, the last block
uses max pooling, and there are 1008 logits. It is for inference only: each batch norm is folded into its convolution.
Blocks and convolutions have the names of the PyTorch ports, whose weights it takes.

Source: Szegedy et al. 2016, Rethinking the Inception Architecture, table 1; the graph inception-2015-12-05.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIZE = 299  # pixels
LOGITS = 1008
# Ampere and newer GPUs would round factors to 10-bit mantissas (TF32), an error above the 1e-3 that features must keep.
PRECISION = jax.lax.Precision.HIGHEST


class Conv(NamedTuple):
    """A convolution with bias, then ReLU. With stride 2 it is not padded, as in all Inception blocks."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch is a list of steps: a convolution, the name of a pool, or a fork, whose convolutions share one input.
Step = Conv | str | tuple[Conv, ...]
Branches = list[list[Step]]


def block_a(pooled: int) -> Branches:
    """Returns a 35 x 35 block: 1x1, 5x5, double 3x3, and an average pool projected to `pooled` channels."""
    return [
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
        ["average", Conv("branch_pool", pooled)],
    ]


def block_c(width: int) -> Branches:
    """Returns a 17 x 17 block: each 7x7 is factored into 1x7 and 7x1, with `width` channels between."""
    return [
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        ["average", Conv("branch_pool", 192)],
    ]


def block_e(pool: str) -> Branches:
    """Returns an 8 x 8 block: 3x3 is forked into 1x3 and 3x1; `pool` differs between the two such blocks."""
    return [
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))],
        [
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ],
        [pool, Conv("branch_pool", 192)],
    ]


BLOCKS: dict[str, Branches] = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": [  # from 35 x 35 to 17 x 17
        [Conv("branch3x3", 384, (3, 3), 2)],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)],
        ["halve"],
    ],
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": [  # from 17 x 17 to 8 x 8
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ],
        ["halve"],
    ],
    "Mixed_7b": block_e("average"),
    "Mixed_7c": block_e("max"),
}


def average_pool(x_BHWC: jax.Array) -> jax.Array:
    """Returns the mean over the part of each 3 x 3 neighbourhood that lies within the image."""
    return nn.avg_pool(x_BHWC, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x_BHWC: jax.Array) -> jax.Array:
    """Returns the maximum of each 3 x 3 neighbourhood."""
    return nn.max_pool(x_BHWC, (3, 3), (1, 1), "SAME")


def halve(x_BHWC: jax.Array) -> jax.Array:
    """Returns the maximum of 3 x 3 windows with stride 2, without padding."""
    return nn.max_pool(x_BHWC, (3, 3), (2, 2), "VALID")


POOLS = {"average": average_pool, "max": max_pool, "halve": halve}


def convolve(conv: Conv, x_BHWC: jax.Array, padded: bool = True) -> jax.Array:
    """Applies the convolution, as a child of the calling module, then ReLU."""
    padding = "SAME" if padded and conv.stride == 1 else "VALID"
    strides = (conv.stride, conv.stride)
    layer = nn.Conv(conv.features, conv.kernel, strides, padding, precision=PRECISION, name=conv.name)
    return nn.relu(layer(x_BHWC))


class Mixed(nn.Module):
    """A block: applies its branches to the same input and concatenates their channels."""

    branches: Branches

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return jnp.concatenate([self._branch(steps, x_BHWC) for steps in self.branches], axis=-1)

    def _branch(self, steps: list[Step], x_BHWC: jax.Array) -> jax.Array:
        for step in steps:
            if isinstance(step, str):
                x_BHWC = POOLS[step](x_BHWC)
            elif isinstance(step, Conv):
                x_BHWC = convolve(step, x_BHWC)
            else:
                x_BHWC = jnp.concatenate([convolve(conv, x_BHWC) for conv in step], axis=-1)
        return x_BHWC


def stretch(images: jax.Array, size: int, axis: int) -> jax.Array:
    """Interpolates linearly along an axis to `size` pixels, as TensorFlow 1 does: pixel i samples i * length / size.

    Positions thus count from the first pixel's centre, not from its edge, and the last pixel is repeated. An image that
    shrinks is not antialiased.
    """
    length = images.shape[axis]
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = position.astype(np.int32)
    shape = [size if i == axis else 1 for i in range(images.ndim)]
    share = jnp.asarray(position - low).reshape(shape)
    below = jnp.take(images, low, axis)
    above = jnp.take(images, np.minimum(low + 1, length - 1), axis)
    return below + (above - below) * share


def resize(images_BHWC: jax.Array, size: int = SIZE) -> jax.Array:
    """Resizes to float32 [B, size, size, C], bilinear as in TensorFlow 1 with align_corners=False: width first."""
    return stretch(stretch(images_BHWC.astype(jnp.float32), size, 2), size, 1)


class InceptionOutput(NamedTuple):
    """features [B, 2048], the last average pool; logits [B, 1008]; and the logits without their bias. All float32.

    The published Inception Scores are computed from the logits without bias (Salimans et al. 2016, its code).
    """

    features: jax.Array
    logits: jax.Array
    unbiased_logits: jax.Array


class Inception(nn.Module):
    """Maps images [B, H, W, 3] in 0..255, uint8 or float and of any size, to features and logits."""

    @nn.compact
    def __call__(self, images_BHWC: jax.Array) -> InceptionOutput:
        x_BHWC = (resize(images_BHWC) - 128) / 128
        x_BHWC = convolve(Conv("Conv2d_1a_3x3", 32, (3, 3), 2), x_BHWC)
        x_BHWC = convolve(Conv("Conv2d_2a_3x3", 32, (3, 3)), x_BHWC, padded=False)
        x_BHWC = halve(convolve(Conv("Conv2d_2b_3x3", 64, (3, 3)), x_BHWC))
        x_BHWC = convolve(Conv("Conv2d_3b_1x1", 80), x_BHWC)
        x_BHWC = halve(convolve(Conv("Conv2d_4a_3x3", 192, (3, 3)), x_BHWC, padded=False))
        for name, branches in BLOCKS.items():
            x_BHWC = Mixed(branches, name=name)(x_BHWC)
        features_BD = x_BHWC.mean((1, 2))
        classify = nn.Dense(LOGITS, use_bias=False, precision=PRECISION, name="fc")
        unbiased = classify(features_BD)
        bias = self.param("fc_bias", nn.initializers.zeros, (LOGITS,), jnp.float32)
        return InceptionOutput(features_BD, unbiased + bias[None], unbiased)
