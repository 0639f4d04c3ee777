"""Streams data that is too large for the devices: the same batches as pipeline.py's, read from disk ahead of the step.

The batch of a step is a function of (seed, step) alone. Grain's threads read and decode it, and no position is stored
anywhere, so a resumed run continues where it was on any number of devices and processes.
"""

import threading
from collections.abc import Callable
from functools import lru_cache, partial

import grain
import jax
import numpy as np

from dit_jax.data import pipeline
from dit_jax.data.datasets import Records, Split
from dit_jax.system import environment

THREADS = 16  # at most; PNGs are decoded outside Python's global lock


def threads_here() -> int:
    """Returns the number of reading threads on this machine."""
    return min(environment.cores(), THREADS)


def host_order(key: jax.Array, num_examples: int) -> Callable[[int], np.ndarray]:
    """Returns order(epoch): `pipeline.epoch_order` in host memory, int32 [num_examples]; the latest four are cached."""
    draw, lock = jax.jit(partial(pipeline.epoch_order, num_examples=num_examples)), threading.Lock()
    kept = lru_cache(maxsize=4)(lambda epoch: np.asarray(draw(key, epoch)))

    def order(epoch: int) -> np.ndarray:
        with lock:  # else every thread would compute the same order
            return kept(epoch)

    return order


def batches(records: Records, key: jax.Array, batch_size: int, positions: np.ndarray) -> Callable[[int], Split]:
    """Returns read(step): this process's share of a step's global batch, the examples at `positions` in it."""
    order, per_epoch = host_order(key, records.count), pipeline.steps_per_epoch(records.count, batch_size)

    def read(step: int) -> Split:
        epoch, batch = divmod(step, per_epoch)
        return records.read(order(epoch)[batch * batch_size + positions])

    return read


class Reader:
    """Calls `read` with 0 to count - 1 in order, up to `ahead` of them before they are wanted. `close` it when done."""

    def __init__(self, read: Callable[[int], Split], count: int, ahead: int, threads: int):
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self._batches = iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))
        self._next = 0

    def batch(self, step: int) -> Split:
        """Returns the batch of any step; the one after the previous call's is prefetched."""
        if step != self._next:
            self._batches.set_state({"next_index": step})
        self._next = step + 1
        return next(self._batches)

    def close(self) -> None:
        """Stops the threads; reads in progress finish and are dropped."""
        self._batches.close()
