"""Supplies the images and labels of training calls: arrays that stay on the devices, or batches read from disk.

`feed(step, stop)` returns the arrays for the call that goes from `step` to `stop`; `feed.shapes` describes them.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dit_jax.data.datasets import Records, Split
from dit_jax.data.stream import Reader, batches, threads_here
from dit_jax.training import sharding


class Resident:
    """All the data, whole on every device. Reading starts at once, in the background, while the call is compiled."""

    streamed = False

    def __init__(self, records: Records, mesh: Mesh):
        self._mesh, self._wanted, self._arrays = mesh, True, ()
        put = sharding.replicated(mesh)
        self.shapes = (
            jax.ShapeDtypeStruct((records.count, *records.image_shape), records.dtype, sharding=put),
            jax.ShapeDtypeStruct((records.count,), np.int32, sharding=put),
        )
        self._reader = ThreadPoolExecutor(1, "data")
        self._split: Future[Split] | None = self._reader.submit(records.load, lambda: self._wanted)

    def ready(self) -> None:
        """Waits until all data is read, and places it on the devices. Raises UserError if it is damaged."""
        if self._split is not None:
            self._arrays = tuple(sharding.put_replicated(array, self._mesh) for array in self._split.result())
            self._split = None  # frees the host's copy

    def __call__(self, step: int, stop: int) -> tuple[Any, ...]:
        del step, stop  # the call picks its batches itself
        self.ready()
        return self._arrays

    def close(self) -> None:
        """Stops reading, however far it is."""
        self._wanted = False
        self._reader.shutdown()


class Stream:
    """Only the batches of a call: images [steps_per_call, B, H, W, C], labels [steps_per_call, B], split along B.

    A process reads only what its own devices need. While a call runs, the next call's batches are decoded and sent.
    """

    streamed = True

    def __init__(self, records: Records, key: jax.Array, batch_size: int, steps_per_call: int, steps: int, mesh: Mesh):
        """`key` determines the order of the data (`step.data_keys`); the run ends at step `steps`."""
        self._mesh, self._positions = mesh, sharding.local_positions(mesh, batch_size)
        threads = threads_here()
        read = batches(records, key, batch_size, self._positions)
        self._reader = Reader(read, steps, ahead=steps_per_call + threads, threads=threads)
        self._shape = (steps_per_call, batch_size)
        put = NamedSharding(mesh, sharding.SPLIT_STEPS)
        self.shapes = (
            jax.ShapeDtypeStruct((*self._shape, *records.image_shape), records.dtype, sharding=put),
            jax.ShapeDtypeStruct(self._shape, np.int32, sharding=put),
        )

    def __call__(self, step: int, stop: int) -> tuple[Any, ...]:
        read = [self._reader.batch(i) for i in range(step, stop)]
        read += read[-1:] * (self._shape[0] - len(read))  # compiled for steps_per_call, of which it runs stop - step
        return tuple(
            sharding.put_split_steps(np.stack(column), self._positions, self._shape[1], self._mesh)
            for column in zip(*read, strict=True)
        )

    def ready(self) -> None:
        """Does nothing: a call waits for its own batches."""

    def close(self) -> None:
        """Ends the reading threads."""
        self._reader.close()
