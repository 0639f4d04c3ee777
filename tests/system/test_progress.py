"""Tests the progress line with a clock that the test advances."""

import io
import os

import pytest

from dit_jax.system.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class CostlyLoss:
    """A loss that counts how often it is fetched."""

    def __init__(self):
        self.fetched = 0

    def __float__(self) -> float:
        self.fetched += 1
        return 0.5


def test_a_log_gets_plain_lines_ten_seconds_apart_and_at_the_end():
    clock, log = Clock(), io.StringIO()
    with Progress(5000, images_per_unit=64, stream=log, clock=clock) as progress:
        clock.now += 30  # compiles
        progress.update(100, 1.23456)
        for _ in range(10):
            clock.now += 1.25
            progress.update(progress._done + 10, 0.5)
        clock.now += 1
    # 10 steps in 1.25 s are 8 steps/s, 512 images/s. After 8 of them, 10 s, at step 180: 4820 / 8 = 602.5 s are left.
    assert log.getvalue().splitlines() == [
        "step 0/5,000  compiling",
        "step 100/5,000  loss 1.2346",
        "step 180/5,000  loss 0.5000  512 images/s  0:10:02 left",
        "step 200/5,000  loss 0.5000  512 images/s  stopped after 0:00:44",
    ]


def test_a_terminal_has_one_line_redrawn_at_most_ten_times_a_second():
    clock, screen = Clock(), Terminal()
    progress = Progress(1000, unit="images", stream=screen, clock=clock)
    for done in range(1, 1001):
        clock.now += 0.01
        progress.update(done)
    progress.close()
    progress.close()
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    frames = text.split("\r")[1:]
    assert all(frame.rstrip("\n").endswith("\x1b[K") for frame in frames)
    assert 90 <= len(frames) <= 102  # 10 s, and the first and the last
    assert frames[50].startswith("images 5")
    assert "100 images/s  0:00:0" in frames[50]
    assert frames[-1] == "images 1,000/1,000  100 images/s  done in 0:00:10\x1b[K\n"


def test_work_of_an_earlier_process_is_no_speed():
    clock, log = Clock(), io.StringIO()
    progress = Progress(100_000, initial=90_000, images_per_unit=2, stream=log, clock=clock)
    progress.update(90_010)
    clock.now += 20
    progress.update(90_030)  # one step a second: 2 images/s, 9970 s left
    assert log.getvalue().splitlines() == [
        "step 90,000/100,000  compiling",
        "step 90,030/100,000  2.00 images/s  2:46:10 left",
    ]


def test_the_speed_is_that_of_the_last_seconds():
    clock, log = Clock(), io.StringIO()
    progress = Progress(10_000, stream=log, clock=clock)
    done = 0
    for rate in (100, 7):
        for _ in range(60):
            clock.now += 1
            done += rate
            progress.update(done)
    assert log.getvalue().splitlines()[-1].split("  ")[1] == "7.00 images/s"


def test_one_long_unit_at_a_time_still_has_a_speed():
    clock, log = Clock(), io.StringIO()
    progress = Progress(10, images_per_unit=600, stream=log, clock=clock)
    for done in (1, 2, 3):
        clock.now += 60
        progress.update(done)
    assert log.getvalue().splitlines()[-1] == "step 3/10  10 images/s  0:07:00 left"


def test_the_window_stays_small_however_often_it_is_updated():
    clock = Clock()
    progress = Progress(10**6, stream=io.StringIO(), clock=clock)
    for done in range(1, 50_000):
        clock.now += 0.001
        progress.update(done)
    assert len(progress._window) <= 210
    assert progress._units_per_second() == pytest.approx(1000)


def test_the_loss_is_fetched_only_for_lines_that_are_drawn():
    clock, loss = Clock(), CostlyLoss()
    progress = Progress(1000, stream=io.StringIO(), clock=clock)
    for done in range(1, 1000):
        clock.now += 0.05  # 50 s in all
        progress.update(done, loss)
    assert 3 <= loss.fetched <= 5


def test_a_narrow_terminal_does_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    screen = Terminal()
    with Progress(10**9, stream=screen, clock=Clock()) as progress:
        progress.update(10**8, 0.1)
    assert max(len(frame.removesuffix("\x1b[K")) for frame in screen.getvalue().rstrip("\n").split("\r")) <= 19


@pytest.mark.parametrize("initial", [0, 5])
def test_nothing_left_to_do(initial):
    log = io.StringIO()
    Progress(initial, initial=initial, stream=log, clock=Clock()).close()
    assert log.getvalue().splitlines()[-1] == f"step {initial}/{initial}  done in 0:00:00"


def test_nobody_who_reads_is_no_reason_to_end(tmp_path):
    """As when the output is piped to `head`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as gone, Progress(10, stream=gone) as progress:
        progress.update(10)
        os.dup2(os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY), write)  # otherwise closing it would raise
