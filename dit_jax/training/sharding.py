"""The mesh: one axis, `data`, over all devices. Batches are split along it; the state may be too (see layout.py)."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.errors import UserError
from dit_jax.system import together

AXIS = "data"
REPLICATED = P()
SPLIT = P(AXIS)
SPLIT_STEPS = P(None, AXIS)  # for [steps, batch, ...]


def make_mesh() -> Mesh:
    """Returns a mesh of all devices on one axis, `Auto`: explicit axes break the gradients of embeddings and matmuls.

    Raises:
      UserError: see `together.device_count`.
    """
    return jax.make_mesh((together.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, REPLICATED)


def check_batch(batch_size: int, mesh: Mesh, key: str, microbatches: int = 1) -> None:
    """Raises UserError unless a batch, set by `key`, splits evenly over the mesh and then into the microbatches."""
    if batch_size < 1 or batch_size % mesh.size:
        fix = max(mesh.size, batch_size // mesh.size * mesh.size)
        raise UserError(f"{key}={batch_size} does not split over {mesh.size} devices; use a multiple, such as {fix}")
    local = batch_size // mesh.size
    if local % microbatches:
        fits = [n for n in range(1, local + 1) if local % n == 0]
        raise UserError(
            f"train.microbatches={microbatches} does not divide the {local} images per device ({key}={batch_size} over "
            f"{mesh.size}); use one of {fits}"
        )


def global_index(mesh: Mesh, batch_size: int) -> jax.Array:
    """Inside shard_map: returns this device's positions in the global batch, int32 [batch_size / devices]."""
    local = batch_size // mesh.size
    return jax.lax.axis_index(AXIS) * local + jax.numpy.arange(local)


def mean(tree: Any) -> Any:
    """Inside shard_map: returns each leaf's mean over the devices; skips a single device, where XLA would copy them."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def put_replicated(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Places a host array whole on every device; each process has the array and fills its own devices."""
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])


def local_positions(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the positions in the global batch that this process's devices hold, int [n], ascending."""
    local = batch_size // mesh.size
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return (np.asarray(mine)[:, None] * local + np.arange(local)).ravel()
