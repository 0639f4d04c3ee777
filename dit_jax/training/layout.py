"""The layout of a state on the devices: each leaf is whole on every device, or split over all along one axis.

With `train.shard_params`, matrices are split. A step gathers a part of the network when that part's turn comes
(`gather`); the derivative of `gather` sums the part's gradient over the devices and leaves each device its share. So
the gradient, the optimizer state and the average are split as well, and a device never holds more than one whole part.

Source: ZeRO, stage 3 (Rajbhandari et al. 2020).
"""

import math
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.errors import UserError
from dit_jax.training import sharding
from dit_jax.training.sharding import AXIS
from dit_jax.training.state import TrainState

Axes = Any  # a tree like the arrays', or one value for all: the axis along which each is split, or WHOLE
WHOLE = -1
WHOLE_STATE: TrainState = TrainState(*[WHOLE] * 4)  # pyright: ignore[reportArgumentType]


def split(tree: Any, parts: int) -> Any:
    """Returns the axis along which each leaf of `tree` is split: a matrix's first that `parts` divides, else WHOLE.

    Vectors stay whole: they hold one number in a thousand, and messages of their own would cost more than they save.
    """

    def axis(leaf: jax.ShapeDtypeStruct) -> int:
        fits = [a for a, size in enumerate(leaf.shape) if size % parts == 0]
        return fits[0] if fits and len(leaf.shape) > 1 and parts > 1 else WHOLE

    return jax.tree.map(axis, tree)


def check(tree: Any, axes: Axes, mesh: Mesh) -> None:
    """Raises UserError if splitting saves little: on several devices, less than half of the numbers are split."""
    if mesh.size > 1 and split_share(tree, axes) < 0.5:
        fix = f"the sizes of the network are not divisible by {mesh.size} devices"
        raise UserError(f"train.shard_params=True: {fix}; use a number of devices that divides model.width, or False")


def split_share(tree: Any, axes: Axes) -> float:
    """Returns the share of a tree's numbers that are split."""
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    return sum(size for size, axis in zip(sizes, _flat(axes, tree), strict=True) if axis != WHOLE) / sum(sizes)


def specs(axes: Axes) -> Any:
    """Returns the PartitionSpec of each leaf."""
    return jax.tree.map(lambda axis: P(*[None] * axis, AXIS) if axis != WHOLE else P(), axes)


def shardings(axes: Axes, mesh: Mesh) -> Any:
    """Returns the sharding of each leaf as a global array."""
    return jax.tree.map(lambda axis: NamedSharding(mesh, specs(axis)), axes)


def gather(tree: Any, axes: Axes) -> Any:
    """Inside shard_map: returns whole leaves from all devices' shares. Its derivative sums gradients into shares."""
    whole = lambda x, axis: x if axis == WHOLE else jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)  # noqa: E731
    return jax.tree.map(whole, tree, axes)


def mean(tree: Any, axes: Axes) -> Any:
    """Inside shard_map: returns means over the devices of gradients, whose split leaves `gather` has already summed."""
    leaves, structure = jax.tree.flatten(tree)
    flat = _flat(axes, tree)
    means = iter(sharding.mean([x for x, axis in zip(leaves, flat, strict=True) if axis == WHOLE]))
    devices = jax.lax.axis_size(AXIS)
    return structure.unflatten(
        [next(means) if axis == WHOLE else x / devices for x, axis in zip(leaves, flat, strict=True)]
    )


def norm(tree: Any, axes: Axes) -> jax.Array:
    """Inside shard_map: returns the Euclidean norm of a tree, over all its shares; the same on all devices."""
    leaves, flat = jax.tree.leaves(tree), _flat(axes, tree)
    shares = [x for x, axis in zip(leaves, flat, strict=True) if axis != WHOLE]
    if not shares:
        return optax.tree.norm(tree)
    squared = optax.tree.norm([x for x, axis in zip(leaves, flat, strict=True) if axis == WHOLE], squared=True)
    return jax.numpy.sqrt(squared + jax.lax.psum(optax.tree.norm(shares, squared=True), AXIS))


def _flat(axes: Axes, tree: Any) -> list[int]:
    """Returns the axis of each leaf of `tree`."""
    return jax.tree.leaves(jax.tree.broadcast(axes, tree))
