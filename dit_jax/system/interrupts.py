"""Ctrl-C (SIGINT) where training does not listen for it (see stop.py): the process ends, with exit code 130.

Imports only the standard library, because it runs before imports that take seconds.
"""

import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
AGAIN = 0.1  # seconds


def end_silently() -> None:
    """Makes Ctrl-C end the process without a traceback, while it imports; changes nothing if SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """Undoes `end_silently`: Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def repeat() -> None:
    """Repeats a Ctrl-C soon, because it was raised in a destructor or a callback, where Python drops exceptions."""
    timer = threading.Timer(AGAIN, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.daemon = True
    timer.start()


def leave(code: int) -> NoReturn:
    """Ends the process; after Ctrl-C at once, as Python's own end crashes if XLA was compiling."""
    if code == INTERRUPTED:
        leave_at_once(code)
    sys.exit(code)


def leave_at_once(code: int) -> NoReturn:
    """Ends the process without exit handlers, even if nobody reads what it has printed or Ctrl-C comes again."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
