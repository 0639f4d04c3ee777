"""Data larger than memory: the same batches as pipeline.py's, read from the disk ahead of the step.

The batch of a step is a function of (seed, step) alone: it is read, decoded and handed over by threads of Grain, and no
position is kept anywhere. So a resumed run reads on where it was, on any number of devices and processes.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import grain
import jax
import numpy as np

from dit_jax.data import pipeline
from dit_jax.data.datasets import Records, Split
from dit_jax.system import environment

THREADS = 16  # at most; decoding of PNG is outside of Python's lock


def threads_here() -> int:
    """How many read at a time."""
    return min(environment.cores(), THREADS)


def host_order(key: jax.Array, num_examples: int) -> Callable[[int], np.ndarray]:
    """order(epoch) -> `pipeline.epoch_order` as int32 [num_examples] in the host's memory; the newest few are kept."""
    draw, lock = jax.jit(partial(pipeline.epoch_order, num_examples=num_examples)), threading.Lock()
    kept = lru_cache(maxsize=4)(lambda epoch: np.asarray(draw(key, epoch)))

    def order(epoch: int) -> np.ndarray:
        with lock:  # else every thread draws the same one
            return kept(epoch)

    return order


class Batches(Sequence[Split]):
    """`batches[step]`: this process's share of a step's global batch, the examples at `positions` of it."""

    def __init__(self, records: Records, key: jax.Array, batch_size: int, positions: np.ndarray, steps: int):
        self._records, self._batch_size, self._positions, self._steps = records, batch_size, positions, steps
        self._order = host_order(key, records.count)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Split:
        epoch, batch = divmod(step, pipeline.steps_per_epoch(self._records.count, self._batch_size))
        return self._records.read(self._order(epoch)[batch * self._batch_size + self._positions])


class Reader:
    """Gives batches in turn, up to `ahead` of them read before they are asked for; `close` it."""

    def __init__(self, batches: Sequence[Split], ahead: int, threads: int):
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self._batches = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
        self._next = 0

    def batch(self, step: int) -> Split:
        """The batch of a step; any, but the one after the last is there already."""
        if step != self._next:
            self._batches.set_state({"next_index": step})
        self._next = step + 1
        return next(self._batches)

    def close(self) -> None:
        """Ends the threads; what they are at is finished and dropped."""
        self._batches.close()
