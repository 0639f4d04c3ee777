"""Ctrl-C while nothing listens for it: no traceback, no crash, and none is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit_jax import errors
from tests import process

CODE = f"""
import atexit, runpy, signal, sys
interrupts = runpy.run_path({str(Path("dit_jax/system/interrupts.py").absolute())!r})
signal.signal(signal.SIGINT, signal.{{handler}})
interrupts["end_silently"]()
{{silent}}
interrupts["raise_again"]()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("raised", end=" ")
atexit.register(print, "and ended")
interrupts["leave"]({{code}})
"""
INTERRUPT = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("handler", "silent", "code", "end"),
    [
        ("default_int_handler", "", 130, (130, "raised ")),
        ("default_int_handler", "", 7, (7, "raised and ended\n")),
        ("default_int_handler", INTERRUPT, 7, (-signal.SIGINT, "")),
        ("SIG_IGN", INTERRUPT, 7, (7, "and ended\n")),  # as a shell's background job
    ],
)
def test_it_raises_or_ends_silently_and_python_need_not_end_itself(handler, silent, code, end):
    program = CODE.format(handler=handler, silent=silent, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (*end, "")


def test_one_that_a_destructor_swallows_comes_again(monkeypatch, capsys):
    class Destroyed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    try:
        errors.quieten_threads()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            Destroyed()  # is destroyed at once
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""
    assert time.monotonic() - start < 10  # it reaches the thread that sleeps


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_import_of_main_leaves_a_traceback():
    with process.as_in_a_terminal():
        run = subprocess.Popen([sys.executable, "main.py", "--help"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with run:
        while "jaxlib" not in Path(f"/proc/{run.pid}/maps").read_text():  # early in its imports
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (-signal.SIGINT, b"", b"")
