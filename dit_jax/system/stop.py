"""Why a run ends early: SIGTERM (a scheduler's), Ctrl-C, a lost terminal (SIGHUP), or `train.max_seconds`."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from dit_jax.system import together

logger = logging.getLogger(__name__)
OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: "try again", as the run is not over
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT


class Stop:
    """Asked by the loop, once a dispatch, whether to end; a context manager that puts the signals back.

    `code` is the process's exit code by then: 0 (not asked to end), 143 (SIGTERM), 130 (Ctrl-C), 129 (SIGHUP, unless
    nohup had it ignored) or 75 (time is up; not before the second call, so that each session gains steps). A second
    Ctrl-C ends the process at once, even while the main thread waits for the devices: the byte that Python's own
    handler writes for each signal is read by a thread.

    With several processes, a signal may reach one alone: `__call__` gives all of them the same answer, one call later,
    and `code` is then the greatest of theirs.
    """

    def __init__(self, max_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic):
        """The time counts from here; `max_seconds` 0 is no limit."""
        self.code, self._max_seconds, self._clock, self._start = 0, max_seconds, clock, clock()
        self._interrupted = False
        self._before: dict[int, Any] = {}
        self._agree = together.Agreement()
        self._busy_with, self._calls = "the steps under way", 0

    def __enter__(self) -> Self:
        return self

    def listen(self) -> None:
        """From here on a signal no longer ends the process but asks the loop to; in the main thread alone."""
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
        self._before = {}  # so that it may listen again

    def __call__(self) -> bool:
        """Whether to end now."""
        self._calls += 1
        if self._calls > 1:
            self.out_of_time()
        return self.signalled()

    def out_of_time(self) -> bool:
        """Whether this process should end now, by the clock or a signal; asks no other one."""
        if not self.code and 0 < self._max_seconds <= self._clock() - self._start:
            self.code = OUT_OF_TIME
            logger.info("train.max_seconds=%g are over: saving", self._max_seconds)
        return bool(self.code)

    def signalled(self) -> bool:
        """The same without a look at the clock, for work that comes to no end if each session has too little time."""
        agreed = self._agree(self.code)
        if agreed and not self.code:
            logger.info("another process was asked to end: saving")
        if agreed:  # else a signal that comes right now would be lost
            self.code = agreed
        return bool(agreed)

    def at_last(self) -> bool:
        """`signalled` after the last call, of all that any process was told before: no answer is a call late."""
        return self.signalled() or self.signalled()

    @contextlib.contextmanager
    def busy_with(self, work: str) -> Iterator[None]:
        """Within it, `work` is what a signal is told to wait for."""
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
                logger.info("ended at once; checkpoints that were complete stay so")
                os._exit(INTERRUPTED)
            if interrupt or not self.code:
                again = "; Ctrl-C once more ends at once" if interrupt else ""
                name = signal.Signals(byte[0]).name
                logger.info("%s: finishing %s, then saving%s", name, self._busy_with, again)
            self._interrupted = self._interrupted or interrupt
            self.code = self.code or 128 + byte[0]
