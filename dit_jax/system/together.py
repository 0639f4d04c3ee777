"""Makes several processes act as one run: what the first does alone, what all agree on, how all end when one fails.

The first process writes; all compute. In a run of one process none of these functions waits for anything. Barriers and
failures go through JAX's coordination service, so they work while the devices are busy or stuck; values that the
processes agree on go through the devices.
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
from jax._src.distributed import global_state  # JAX offers no public way; Orbax does the same
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.errors import UserError, is_out_of_memory
from dit_jax.system import interrupts

WISHES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")  # environment variables that ask for devices
ENDED, LEAVING = "dit_jax/ended", "dit_jax/leaving"
POLL = 0.5  # seconds between two checks whether another process has failed
FAREWELL = 10  # seconds that a failed process waits for the others to notice
WEEK = 7 * 24 * 3600  # seconds; no wait for all processes takes longer
_leaving = threading.Lock()
_over = threading.Event()
_waits = itertools.count()


def several() -> bool:
    """Whether this run has more than one process."""
    return global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process is the one that writes and logs; touches no device."""
    return global_state.process_id == 0


def screen() -> TextIO:
    """Returns standard error in the first process, the null device in the others."""
    return sys.stderr if is_first() else open(os.devnull, "w")


def begin() -> None:
    """Makes any process's failure end this one; all but the first now log only errors. Called once, after joining."""
    if not is_first():
        logging.getLogger("dit_jax").setLevel(logging.ERROR)
    threading.Thread(target=_watch, name="others", daemon=True).start()


def sync() -> None:
    """Waits until the main thread of every process gets here."""
    meet(f"dit_jax/{next(_waits)}", WEEK * 1000)


def meet(place: str, timeout_ms: int) -> None:
    """Waits until every process is at the barrier `place`."""
    if several():
        _client().wait_at_barrier(place, timeout_ms)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Runs the block in the first process, then in the others, which find what it left on disk."""
    if not is_first():
        sync()
    yield
    if is_first():
        sync()


def all_true(mine: bool) -> bool:
    """Whether `mine` is true in every process."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine)))) if several() else mine


def from_first(numbers: Sequence[int]) -> list[int]:
    """Returns the first process's numbers, below 2^31; there may be more or fewer of them than given here."""
    if not several():
        return list(numbers)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.resize(np.asarray(numbers, np.int32), size) if numbers else np.zeros(size, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def device_count() -> int:
    """Returns the number of all devices.

    Raises:
      UserError: there are none, and the environment asks for devices that this machine may lack.
    """
    try:
        return jax.device_count()
    except (AssertionError, RuntimeError) as error:
        wishes = [f"{name}={value}" for name, value in os.environ.items() if name in WISHES]
        if several() or is_out_of_memory(error) or not wishes:
            raise
        reason = " ".join(str(error).split())[:200] or "it gives no reason"
        raise UserError(
            f"JAX found no device ({reason}); fix that, or check the environment: {' '.join(wishes)}"
        ) from error


def check_devices() -> None:
    """Refuses unequal numbers of devices per process, which JAX's multihost functions do not support.

    Raises:
      UserError: there are no devices; or in every process, except those that happen to have the mean number.
    """
    count = device_count()
    if several() and count != jax.process_count() * jax.local_device_count():
        others = f"{count} in {jax.process_count()} processes, {jax.local_device_count()} of them here"
        raise UserError(
            f"all processes need the same number of devices: there are {others}; use the same number in each"
        )


def check_alike(what: str, mine: Any, fix: str) -> None:
    """Refuses a run in which a process has another value than the first one; JSON must be able to hold the value.

    Raises:
      UserError: in all processes.
    """
    if several():
        sync()  # waits without the devices, which cannot wait for hours
        number = zlib.crc32(json.dumps(mine).encode()) >> 1
        if not all_true(from_first([number]) == [number]):
            raise UserError(f"the {jax.process_count()} processes do not have the same {what}; {fix}")


def whole(array: jax.Array) -> np.ndarray:
    """Returns an array that is spread over all devices as one array on this host."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


class Agreement:
    """agreement(code) -> the greatest code that any process gave in the previous call, 0 in the first call.

    All processes must call it equally often. The answer is that of the previous call so that it is ready at once, even
    if the devices have not finished what they were given since. A single process gets back its own `code`.
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
    """Waits until every process has finished, disconnects, and returns `code`."""
    if several():
        sync()
        _over.set()
        jax.distributed.shutdown()
    return code


def fail(code: int, tell: Callable[[], None]) -> int:
    """Ends every process with `code`; the first to fail calls `tell`. If alone, calls `tell` and returns `code`."""
    if not several():
        tell()
        return code
    with _leaving:
        try:
            _client().key_value_set(ENDED, str(code))
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):  # nobody can be reached: the others report their own end
                tell()
        else:
            tell()
        _leave(code)


def _watch() -> None:
    """Ends this process once another has failed, even if its main thread is stuck."""
    while not _over.wait(POLL):
        try:
            code = int(_client().key_value_try_get(ENDED))
        except jax.errors.JaxRuntimeError:
            continue  # no process has failed; if the service is gone, JAX ends this process
        with _leaving:
            _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends this process without exit handlers, which wait for others; the first, which hosts the service, ends last."""
    with contextlib.suppress(jax.errors.JaxRuntimeError, KeyboardInterrupt):
        _client().wait_at_barrier(LEAVING, FAREWELL * 1000)
        if is_first():
            time.sleep(3)  # the others, which may be slow to end, must not find the service gone
    interrupts.leave_at_once(code)


def _client() -> Any:
    return global_state.client
