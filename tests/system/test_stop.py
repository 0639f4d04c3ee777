"""A signal or the time limit ends a run in order; a second Ctrl-C ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dit_jax.system.stop import Stop


def ask_until_true(stop):
    deadline = time.monotonic() + 20
    while not stop() and time.monotonic() < deadline:
        time.sleep(0.001)
    return stop()


@pytest.fixture
def heard():
    """Gives SIGHUP its default handler, as in a terminal, even if these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# 128 + the signal's number (15, 2, 1), as shells and schedulers report it.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_asks_the_run_to_end(number, code, heard):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Stop() as stop:
        stop.listen()
        assert not stop()
        os.kill(os.getpid(), number)
        assert ask_until_true(stop)
        assert stop.code == code
        os.kill(os.getpid(), signal.SIGTERM)  # asked again: it is already ending
        time.sleep(0.05)
        assert stop.code == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert not any(thread.name == "signals" for thread in threading.enumerate())


def test_after_the_last_call_what_another_process_was_told_is_known(monkeypatch):
    """Several processes agree one call late; here another process was signalled after this one's last call."""
    stop, codes = Stop(), iter([0, 0, 143])
    monkeypatch.setattr(stop, "_agree", lambda code: next(codes))
    assert not stop()
    assert stop.at_last()
    assert stop.code == 143


def test_it_may_listen_for_a_part_of_the_work_and_again():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        with stop:
            stop.listen()
        assert signal.getsignal(signal.SIGTERM) == before
    with stop:
        stop.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ask_until_true(stop)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            stop.listen()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_limit_shorter_than_the_start_still_gains_a_call():
    """Otherwise a job that is restarted repeatedly, with less time than it takes to compile, would never finish."""
    now = [0.0]
    stop = Stop(1.0, clock=lambda: now[0])
    now[0] = 100.0
    assert not stop.signalled()  # evaluations ask this way: they are finished whatever the time
    assert not stop()
    assert stop()


def test_before_it_listens_a_signal_is_pythons():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    with Stop(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_time_limit_is_of_a_clock_that_cannot_jump(monkeypatch):
    now = [1000.0]
    stop = Stop(60.0, clock=lambda: now[0])
    unlimited = Stop(0.0, clock=lambda: now[0])
    now[0] = 1059.9
    assert not stop()
    now[0] = 1060.0
    assert stop()
    assert stop.code == 75  # EX_TEMPFAIL of sysexits.h
    now[0] = 1e9
    assert not unlimited()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not Stop(60.0)()


BUSY = """
import hashlib
from dit_jax.system.stop import Stop
with Stop() as stop:
    stop.listen()
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, as a wait for the devices: no Python handler is run
"""


@pytest.mark.parametrize("before", [[], [signal.SIGTERM]])
def test_a_second_ctrl_c_ends_a_process_whose_main_thread_is_busy(before):
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "listening\n"
        try:
            for number in [*before, signal.SIGINT]:
                process.send_signal(number)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()


def test_a_signal_is_told_what_it_waits_for(caplog):
    caplog.set_level("INFO", logger="dit_jax")
    with Stop() as stop:
        stop.listen()
        with stop.busy_with("a batch of the evaluation"):
            os.kill(os.getpid(), signal.SIGTERM)
            ask_until_true(stop)
            time.sleep(0.05)
    assert "SIGTERM: finishing a batch of the evaluation, then saving" in caplog.text
