"""Several processes acting as one run: what the first does alone, what all agree on, and how all end when one does.

The first process writes; all compute. In a run of one process none of these functions waits for anything.
Messages go through the service by which JAX's processes know each other, so they pass while the devices are busy or
stuck; the agreements of training go through the devices, in step with it.
"""

import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

import jax
import numpy as np
from jax._src.distributed import global_state  # JAX shows no other way to it; Orbax takes the same
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.errors import UserError

logger = logging.getLogger(__name__)
ENDED, LEAVING = "dit_jax/ended", "dit_jax/leaving"
POLL = 0.5  # seconds between two looks whether another process has failed
FAREWELL = 10  # seconds that a failed process waits for the others to hear of it
WEEK = 7 * 24 * 3600  # seconds; nothing that all wait for takes longer
_leaving = threading.Lock()
_over = threading.Event()
_waits = itertools.count()


def several() -> bool:
    """Whether this run has more than one process."""
    return global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; asking touches no device."""
    return global_state.process_id == 0


def screen() -> TextIO:
    """Standard error for the first process; nowhere for the others."""
    return sys.stderr if is_first() else open(os.devnull, "w")


def begin() -> None:
    """From here on the end of any process ends this one; called once, when all have found each other."""
    if not is_first():
        logging.getLogger("dit_jax").setLevel(logging.ERROR)
    threading.Thread(target=_watch, name="others", daemon=True).start()


def sync() -> None:
    """Waits until every process's main thread is here."""
    meet(f"dit_jax/{next(_waits)}", WEEK * 1000)


def meet(place: str, timeout_ms: int) -> None:
    """Waits until every process is at this place."""
    if several():
        _client().wait_at_barrier(place, timeout_ms)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process does the block, then the others do: what it leaves on a disk, they find."""
    if not is_first():
        sync()
    yield
    if is_first():
        sync()


def all_true(mine: bool) -> bool:
    """Whether it is true in every process."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine)))) if several() else mine


def from_first(numbers: Sequence[int]) -> list[int]:
    """The first process's numbers, below 2^31, which may be more or fewer than those given here."""
    if not several():
        return list(numbers)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.resize(np.asarray(numbers, np.int32), size) if numbers else np.zeros(size, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def check_devices() -> None:
    """Refuses processes with unequal numbers of devices, which JAX's agreements between them cannot hold.

    Raises:
      UserError: in all but those that happen to have the mean.
    """
    if several() and jax.device_count() != jax.process_count() * jax.local_device_count():
        others = f"{jax.device_count()} in {jax.process_count()} processes, {jax.local_device_count()} of them here"
        raise UserError(f"all processes need as many devices: there are {others}; start as many on each machine")


def check_alike(what: str, mine: Any, fix: str) -> None:
    """Refuses that a process has another value, which JSON can hold, than the first one.

    Raises:
      UserError: in all of them.
    """
    if several():
        sync()  # without the devices, which do not wait for hours
        number = zlib.crc32(json.dumps(mine).encode()) >> 1
        if not all_true(from_first([number]) == [number]):
            raise UserError(f"the {jax.process_count()} processes have not the same {what}; {fix}")


def whole(array: jax.Array) -> np.ndarray:
    """An array of all devices on this host."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


class Agreement:
    """agreement(code) -> the greatest code that any process gave at the call before this one, 0 at the first.

    All must call it alike. As the answer is that of the call before, it is there without waiting: what the devices were
    given since then need not be finished.
    """

    def __init__(self) -> None:
        self._answer: Any = 0

    def __call__(self, code: int) -> int:
        if not several():
            return code
        answer = int(self._answer)
        self._answer = self._greatest(code)
        return answer

    def _greatest(self, code: int) -> jax.Array:
        if not hasattr(self, "_reduce"):
            mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(mesh, P("all"))
            self._reduce = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, P()))
        codes = jax.make_array_from_callback((jax.device_count(),), self._split, lambda _: np.asarray([code], np.int32))
        return self._reduce(codes)


def end(code: int) -> int:
    """Waits until every process has come to its good end, and takes leave; returns `code`."""
    if several():
        sync()
        _over.set()
        jax.distributed.shutdown()
    return code


def fail(code: int, tell: Callable[[], None]) -> int:
    """Ends every process with `code`; the first one to fail tells why. Alone, only tells and returns `code`."""
    if not several():
        tell()
        return code
    with _leaving:
        try:
            _client().key_value_set(ENDED, str(code))
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):  # nobody can be reached: they have their own end to tell
                tell()
        else:
            tell()
        _leave(code)


def _watch() -> None:
    """Ends this process once another has failed, wherever its main thread may be stuck."""
    while not _over.wait(POLL):
        try:
            code = int(_client().key_value_try_get(ENDED))
        except jax.errors.JaxRuntimeError:
            continue  # nothing there. A service that is gone ends the process by itself
        with _leaving:
            _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends this process without the things that wait for others; the first, whom the others reach by, is last."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier(LEAVING, FAREWELL * 1000)
        if is_first():
            time.sleep(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    return global_state.client
