"""The progress line of a long job: units done, loss, speed and time left."""

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from dit_jax.system.together import screen

TERMINAL_SECONDS = 0.1  # at least, between two redraws on a terminal
LOG_SECONDS = 10.0  # at least, between two lines in a log file or a pipe
WINDOW_SECONDS = 20.0  # over which the speed is averaged
SAMPLE_SECONDS = 0.1  # at least, between two entries of the window, so about 200 at most


class Progress:
    """Shows e.g. `step 1,200/5,000  loss 0.1234  595 images/s  0:01:32 left`; a context manager, or call `close`.

    On a terminal one line is rewritten in place; elsewhere a plain line is printed now and then. Until the first
    `update` the line ends with `start`; that time does not count towards the speed.

    Args:
        total: Units in the whole job.
        unit: The name of a unit, shown before the numbers.
        initial: Units that an earlier process has done; they count as progress but not towards the speed.
        images_per_unit: Images in one unit, for the images per second; for a training step, the global batch size.
        start: What is happening until the first `update`.
        stream: Where to write; if None, the first process writes to standard error and the others nowhere.
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
        """Records that `done` units, including the initial ones, are finished, and redraws the line if it is time.

        `loss` may be a number or a scalar device array. It is read only when a line is drawn, so passing one at every
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
        """Draws the final state, with the time that this process took, and ends the line; later calls do nothing."""
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
        # The newest entry is always the current state; older ones are kept SAMPLE_SECONDS apart.
        if len(window) >= 2 and window[-1][0] - window[-2][0] < SAMPLE_SECONDS:
            window.pop()
        window.append((now, self._done))
        while len(window) > 2 and now - window[1][0] >= WINDOW_SECONDS:
            window.popleft()

    def _units_per_second(self) -> float | None:
        """Returns the speed over the window; None until it spans time and progress."""
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
        with contextlib.suppress(OSError):  # a closed pipe or a full disk must not end the job
            self._stream.write(text)
            self._stream.flush()


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2f}"


def _hours(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
