"""Where a training call's images and labels come from: arrays that stay on the devices, or batches read from the disk.

A feed is asked `feed(step, stop)` for what the call of these steps takes; `shapes` are those arrays or their shapes.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dit_jax.data.datasets import Records, Split
from dit_jax.data.stream import Batches, Reader
from dit_jax.training import sharding


class Resident:
    """All the data, whole on every device."""

    streamed = False

    def __init__(self, split: Split, mesh: Mesh):
        self.shapes: tuple[Any, ...] = tuple(sharding.put_replicated(array, mesh) for array in split)

    def __call__(self, step: int, stop: int) -> tuple[Any, ...]:
        del step, stop  # the call picks by itself
        return self.shapes

    def close(self) -> None:
        """Nothing to end."""


class Stream:
    """The batches of a call alone, uint8 [steps_per_call, B, H, W, C] and int32 [steps_per_call, B], split along B.

    A process reads what its own devices need. While a call runs the next one's batches are decoded and sent.
    """

    streamed = True

    def __init__(self, records: Records, key: jax.Array, batch_size: int, steps_per_call: int, steps: int, mesh: Mesh):
        """`key` orders the data (`step.data_keys`); the run ends at `steps`."""
        self._mesh, self._positions = mesh, sharding.local_positions(mesh, batch_size)
        threads = os.cpu_count() or 1
        batches = Batches(records, key, batch_size, self._positions, steps)
        self._reader = Reader(batches, ahead=steps_per_call + threads, threads=threads)
        self._shape = (steps_per_call, batch_size)
        put = NamedSharding(mesh, sharding.SPLIT_STEPS)
        self.shapes = (
            jax.ShapeDtypeStruct((*self._shape, *records.image_shape), np.uint8, sharding=put),
            jax.ShapeDtypeStruct(self._shape, np.int32, sharding=put),
        )

    def __call__(self, step: int, stop: int) -> tuple[Any, ...]:
        read = [self._reader.batch(i) for i in range(step, stop)]
        read += read[-1:] * (self._shape[0] - len(read))  # the call is compiled for as many, and runs stop - step
        return tuple(
            sharding.put_split_steps(np.stack(column), self._positions, self._shape[1], self._mesh)
            for column in zip(*read, strict=True)
        )

    def close(self) -> None:
        """Ends the reading threads."""
        self._reader.close()
