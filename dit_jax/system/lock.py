"""One trainer a workdir: a lock that ends with its process, however that ends. Of several, the first holds it."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dit_jax.errors import UserError
from dit_jax.system import together

logger = logging.getLogger(__name__)
PATIENCE = 60  # seconds; network file systems show new files late


@contextlib.contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Holds WORKDIR/.lock, which says who holds it; the kernel frees it with the process, so a kill leaves no lock.

    Where the file system has no locks, says so and goes on.

    Of several processes the others wait for it, and for its file to be seen by them.

    Raises:
      UserError: another process holds it, or the workdir is not one folder for all processes.
    """
    path = workdir / ".lock"
    if not together.is_first():
        together.sync()
        _see(path)
        yield
        return
    try:
        file = _open_locked(path)
    except BlockingIOError:
        raise _held(path) from None
    together.sync()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: who opened it before sees that it is gone
        os.close(file)


def check_free(workdir: Path) -> None:
    """The same UserError if another process holds the lock now; takes and makes nothing."""
    path = workdir / ".lock"
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(path) from None
    except OSError:  # no locks here, as `only_trainer` says
        pass
    finally:
        os.close(file)


def _see(path: Path) -> None:
    """Waits until the first process's file is there; UserError if it never is."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={path.parent}: on {socket.gethostname()} it is not the folder that the first process made; "
                "name one on a file system that all machines share"
            )
        time.sleep(0.1)


def _open_locked(path: Path) -> int:
    """A descriptor of the locked file; BlockingIOError if another has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second training run there", path, error.strerror)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)  # its holder ended in between and took the file away


def _held(path: Path) -> UserError:
    return UserError(
        f"--workdir={path.parent}: another training run has it ({_holder(path)}); stop that one, or use another workdir"
    )


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "it has just started"
    except OSError:
        return "it has just ended"
