"""Ends a run early: on SIGTERM (from a scheduler), Ctrl-C, a lost terminal (SIGHUP), or `train.max_seconds`."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from dit_jax.system import together
from dit_jax.system.interrupts import INTERRUPTED

logger = logging.getLogger(__name__)
OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: "try again", as the run is not over
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stop:
    """Tells the training loop, once per dispatch, whether to end; a context manager that restores signal handlers.

    `code` is the exit code so far: 0 (not asked to end), 143 (SIGTERM), 130 (Ctrl-C), 129 (SIGHUP, unless nohup had it
    ignored) or 75 (time is up; calls check this only from the second on, so that each session gains steps). A second
    Ctrl-C ends the process at once, even while the main thread waits for the devices, because a thread reads the byte
    that Python's own handler writes for each signal.

    With several processes, a signal may reach only one: `__call__` gives all of them the same answer, one call later,
    and `code` is then the greatest of theirs.
    """

    def __init__(self, max_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic):
        """Starts the clock; `max_seconds` = 0 means no limit."""
        self.code, self._max_seconds, self._clock, self._start = 0, max_seconds, clock, clock()
        self._interrupted = False
        self._before: dict[int, Any] = {}
        self._agree = together.Agreement()
        self._busy_with, self._calls = "the steps under way", 0

    def __enter__(self) -> Self:
        return self

    def listen(self) -> None:
        """Makes signals ask the loop to end instead of ending the process; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write)
        heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, lambda *_: None) for number in heard}
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)  # ends the thread
        self._thread.join()
        os.close(self._read)
        self._before = {}  # so that `listen` can be called again

    def __call__(self) -> bool:
        """Whether the run should end now."""
        self._calls += 1
        if self._calls > 1:
            self.out_of_time()
        return self.signalled()

    def out_of_time(self) -> bool:
        """Whether this process should end now, for the time limit or a signal; does not ask the other processes."""
        if not self.code and 0 < self._max_seconds <= self._clock() - self._start:
            self.code = OUT_OF_TIME
            logger.info("train.max_seconds=%g has been reached: saving", self._max_seconds)
        return bool(self.code)

    def signalled(self) -> bool:
        """Like `__call__`, but does not check the clock: for work that must finish even if every session is short."""
        agreed = self._agree(self.code)
        if agreed and not self.code:
            logger.info("another process was asked to end: saving")
        if agreed:  # otherwise a signal that arrives right now would be lost
            self.code = agreed
        return bool(agreed)

    def at_last(self) -> bool:
        """Whether any process was asked to end before this call. Asks twice, as an answer arrives one call late."""
        return self.signalled() or self.signalled()

    @contextlib.contextmanager
    def busy_with(self, work: str) -> Iterator[None]:
        """Within the block, a signal's log message says that `work` is finished first."""
        before, self._busy_with = self._busy_with, work
        try:
            yield
        finally:
            self._busy_with = before

    def _watch(self) -> None:
        while byte := os.read(self._read, 1):
            if byte[0] not in SIGNALS:
                continue
            interrupt = byte[0] == signal.SIGINT
            if interrupt and self._interrupted:
                logger.info("ended at once; complete checkpoints are kept")
                os._exit(INTERRUPTED)
            if interrupt or not self.code:
                again = "; press Ctrl-C again to end at once" if interrupt else ""
                name = signal.Signals(byte[0]).name
                logger.info("%s: finishing %s, then saving%s", name, self._busy_with, again)
            self._interrupted = self._interrupted or interrupt
            self.code = self.code or 128 + byte[0]
