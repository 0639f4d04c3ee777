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
    """Only the batches of a call: images [most_steps, B, H, W, C], labels [most_steps, B], split along B.

    A process reads only what its own devices need. While a call runs, the next call's batches are decoded and sent.
    """

    streamed = True

    def __init__(self, records: Records, key: jax.Array, batch_size: int, most_steps: int, steps: int, mesh: Mesh):
        """`key` determines the order of the data (`step.data_keys`); the run ends at step `steps`."""
        threads, positions = threads_here(), sharding.local_positions(mesh, batch_size)
        read = batches(records, key, batch_size, positions)
        self._reader = Reader(read, steps, ahead=most_steps + threads, threads=threads)
        put, shape, here = NamedSharding(mesh, sharding.SPLIT_STEPS), (most_steps, batch_size), len(positions)
        self.shapes = (
            jax.ShapeDtypeStruct((*shape, *records.image_shape), records.dtype, sharding=put),
            jax.ShapeDtypeStruct(shape, np.int32, sharding=put),
        )
        self._local = [((most_steps, here, *whole.shape[2:]), whole.dtype) for whole in self.shapes]

    def __call__(self, step: int, stop: int) -> tuple[Any, ...]:
        images, labels = (np.empty(*each) for each in self._local)
        for i in range(step, stop):  # the call is compiled for `most_steps`, but runs only these
            images[i - step], labels[i - step] = self._reader.batch(i)
        return tuple(
            jax.make_array_from_process_local_data(whole.sharding, local, whole.shape)
            for whole, local in zip(self.shapes, (images, labels), strict=True)
        )

    def ready(self) -> None:
        """Does nothing: a call waits for its own batches."""

    def close(self) -> None:
        """Ends the reading threads."""
        self._reader.close()
