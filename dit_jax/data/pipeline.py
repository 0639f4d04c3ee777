"""Batches as a pure function of (seed, step), inside the jitted step.

An epoch is a permutation of the data set that depends on (seed, epoch). It has floor(n / batch) steps and leaves out
the remainder, which differs between epochs. Nothing here has state, so a restarted run continues where it was.

Data that fits is whole on the devices, and the host sends nothing (`from_resident`). Otherwise the host reads examples
in the same order (stream.py) and sends the batches of each dispatch (`from_stream`). The batches are the same.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)
Pick = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # step -> a device's images [b, ...], labels [b]


def epoch_order(key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """Returns the permutation of an epoch, int32 [num_examples]."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the whole batches in an epoch: 0 if a batch is larger than the data, which training refuses."""
    return num_examples // batch_size


def epoch_orders(
    key: jax.Array, first_step: jax.Array, num_steps: int, num_examples: int, batch_size: int
) -> jax.Array:
    """Returns the permutations of every epoch that steps first_step .. first_step + num_steps - 1 can touch.

    They are int32 [epochs, num_examples]; row 0 is the epoch of `first_step`.
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    epochs = first_step // per_epoch + jnp.arange((num_steps - 1 + per_epoch - 1) // per_epoch + 1)
    return jax.vmap(lambda epoch: epoch_order(key, epoch, num_examples))(epochs)


def batch_indices(orders: jax.Array, first_step: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Returns the examples in the global batch of `step`, int32 [batch_size]; `orders` start at `first_step`."""
    per_epoch = steps_per_epoch(orders.shape[1], batch_size)
    row = step // per_epoch - first_step // per_epoch
    start = step % per_epoch * batch_size
    return jax.lax.dynamic_slice(orders, (row, start), (1, batch_size))[0]


def from_resident(
    key: jax.Array,
    first: jax.Array,
    num_steps: int,
    batch_size: int,
    mine: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> Pick:
    """Returns a function that picks the batches of steps first .. first + num_steps - 1 from all the data [n, ...].

    It picks the positions `mine` of the global batch.
    """
    orders = epoch_orders(key, first, num_steps, images.shape[0], batch_size)

    def pick(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = batch_indices(orders, first, step, batch_size)[mine]
        return opaque(images[chosen], labels[chosen])

    return pick


def from_stream(first: jax.Array, images: jax.Array, labels: jax.Array) -> Pick:
    """Returns a function that picks from batches read before, [steps, b, ...]; the first is that of step `first`."""
    return lambda step: opaque(images[step - first], labels[step - first])


def opaque(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the same arrays, but keeps XLA from fusing them with their uses, so that these round alike."""
    return jax.lax.optimization_barrier((images, labels))


def to_float(images: Array) -> Array:
    """Maps uint8 0..255 to float32 in [-1, 1]; latents, which are float32, stay as they are. NumPy's stay NumPy's."""
    return images if images.dtype == jnp.float32 else images.astype(jnp.float32) / 127.5 - 1


def flip(x: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2, by its own key: [B, H, W, C] -> the same.

    Latents come in pairs, of the image and of its mirror image, [B, 2, h, w, c]; one is taken -> [B, h, w, c].
    """
    straight, mirrored = (x, x[:, :, ::-1]) if x.ndim == 4 else (x[:, 0], x[:, 1])
    mirrored_B = jax.vmap(jax.random.bernoulli)(keys_B)
    return jnp.where(mirrored_B[:, None, None, None], mirrored, straight)


def crop(x_BHWC: jax.Array, keys_B: jax.Array, padding: int) -> jax.Array:
    """Shifts each image by up to `padding` pixels each way, by its own key; pixels that come in are 0, which is grey.

    Source: pad and crop, He et al. 2016, section 4.2.
    """
    _, H, W, _ = x_BHWC.shape
    padded = jnp.pad(x_BHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offset_B2 = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys_B)
    rows, columns = offset_B2[:, :1] + jnp.arange(H)[None], offset_B2[:, 1:] + jnp.arange(W)[None]
    return jax.vmap(lambda image, row, column: image[row][:, column])(padded, rows, columns)
