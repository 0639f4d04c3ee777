"""Allows one trainer per workdir: a lock that ends with its process, however that ends. The first process holds it."""

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
    """Holds WORKDIR/.lock, which names its holder; the kernel frees it with the process, so a kill leaves no lock.

    If the file system has no locks, logs a warning and continues.

    With several processes, the others wait until the first one has the lock and they can see its file.

    Raises:
      UserError: another run holds the lock, or the workdir is not the same folder for all processes.
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
        path.unlink(missing_ok=True)  # while still locked: a process that opened it earlier sees that it is gone
        os.close(file)


def check_free(workdir: Path) -> None:
    """Raises the same UserError if another process holds the lock now; keeps no lock and creates no file."""
    path = workdir / ".lock"
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(path) from None
    except OSError:  # no locks on this file system: `only_trainer` warns of it
        pass
    finally:
        os.close(file)


def _see(path: Path) -> None:
    """Waits until the first process's file is visible; raises UserError after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={path.parent}: on {socket.gethostname()} it is not the folder that the first process made; "
                "use one on a file system that all machines share"
            )
        time.sleep(0.1)


def _open_locked(path: Path) -> int:
    """Returns a descriptor of the locked file; raises BlockingIOError if another process holds the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start a second training run there", path, error.strerror)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            try:
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            except OSError as error:  # a full disk
                os.close(file)
                raise OSError(error.errno, error.strerror, str(path)) from None
            return file
        os.close(file)  # its holder ended in the meantime and removed the file


def _held(path: Path) -> UserError:
    return UserError(
        f"--workdir={path.parent}: another training run is using it ({_holder(path)}); stop that run, or use another "
        "workdir"
    )


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "it has just started"
    except OSError:
        return "it has just ended"
