"""The one living line of a long job: how far, the loss, how fast, how long still."""

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from dit_jax.system.together import screen

TERMINAL_SECONDS = 0.1  # between two redraws of the line on a terminal
LOG_SECONDS = 10.0  # between two lines in a log file or a pipe
WINDOW_SECONDS = 20.0  # the speed is that of the last so many seconds
SAMPLE_SECONDS = 0.1  # between two entries of the window, which bounds it to some 200


class Progress:
    """Shows e.g. `step 1,200/5,000  loss 0.1234  595 images/s  0:01:32 left`; a context manager, or call `close`.

    On a terminal one line is rewritten in place; elsewhere plain lines are printed now and then. Until the first
    `update` it says `compiling` (or `start`), and that time never counts in the speed.

    Args:
        total: Units of the whole job.
        unit: What is counted, as written before the numbers.
        initial: Units that were done before, by an earlier process; they count as progress and not as speed.
        images_per_unit: Images in one unit (a training step: the global batch size), for the images per second.
        start: What is done until the first `update`.
        stream: Where to write; if None, standard error of the first process.
        clock: Returns seconds; tests pass their own.
    """

    def __init__(
        self,
        total: int,
        unit: str = "step",
        initial: int = 0,
        images_per_unit: int = 1,
        start: str = "compiling",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit, self._images_per_unit = total, unit, images_per_unit
        self._stream = screen() if stream is None else stream
        self._clock = clock
        self._done, self._loss = initial, None
        self._window: deque[tuple[float, int]] = deque()  # (time, done), oldest first
        self._terminal = self._stream.isatty()
        self._closed = False
        self._start = clock()
        self._draw(self._line(start))

    def update(self, done: int, loss: Any = None) -> None:
        """Takes note that `done` units (initial ones included) are finished, and draws if it is time.

        `loss` may be a number or a scalar device array. It is read only when a line is drawn, so passing one at each
        step does not make the host wait for the device each time.
        """
        self._done = done
        self._loss = self._loss if loss is None else loss
        now = self._clock()
        self._remember(now)
        if now - self._drawn >= (TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            left = self._seconds_left()
            self._draw(self._line(*self._speed(), *([] if left is None else [f"{_hours(left)} left"])))

    def close(self) -> None:
        """Draws the last state, with the time that this process took, and ends the line; again does nothing."""
        if self._closed:
            return
        self._closed = True
        verb = "done in" if self._done >= self._total else "stopped after"
        self._draw(self._line(*self._speed(), f"{verb} {_hours(self._clock() - self._start)}"))
        if self._terminal:
            self._write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self, now: float) -> None:
        window = self._window
        # The newest entry always is the current state; older ones are kept SAMPLE_SECONDS apart.
        if len(window) >= 2 and window[-1][0] - window[-2][0] < SAMPLE_SECONDS:
            window.pop()
        window.append((now, self._done))
        while len(window) > 2 and now - window[1][0] >= WINDOW_SECONDS:
            window.popleft()

    def _units_per_second(self) -> float | None:
        """Returns the speed over the window; None before it holds two updates at different times."""
        if len(self._window) < 2:
            return None
        (then, before), (now, done) = self._window[0], self._window[-1]
        return (done - before) / (now - then) if now > then and done > before else None

    def _speed(self) -> list[str]:
        rate = self._units_per_second()
        return [] if rate is None else [f"{_rate(rate * self._images_per_unit)} images/s"]

    def _seconds_left(self) -> float | None:
        rate = self._units_per_second()
        return None if rate is None else max(self._total - self._done, 0) / rate

    def _line(self, *end: str) -> str:
        loss = [] if self._loss is None else [f"loss {float(self._loss):.4f}"]
        return "  ".join([f"{self._unit} {self._done:,}/{self._total:,}", *loss, *end])

    def _draw(self, line: str) -> None:
        self._drawn = self._clock()
        if self._terminal:  # a wrapped line could not be rewritten; \x1b[K erases what is left of a longer one
            line = "\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        self._write(line if self._terminal else line + "\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a reader that is gone, a log's full disk: no reason to end the job
            self._stream.write(text)
            self._stream.flush()


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2f}"


def _hours(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
