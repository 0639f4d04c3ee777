"""Errors that the user can fix: reported in one line on stderr, without a traceback, with exit code 2."""

import errno
import os
import re
import signal
import sys
import threading

from absl import flags
from clu.asynclib import AsyncError

from dit_jax.system import interrupts

# Full disks, folders without write permission, files where folders should be. Any other number keeps its traceback.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
               errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # fmt: skip
FIXES = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "make room",
         errno.EISDIR: "move that folder elsewhere", errno.ENOTDIR: "move the file that is in the way"}  # fmt: skip
# Temporary states in which no file can be read: no memory, handles or file server. Not EIO, which a bad disk gives.
PASSING_ERRNO = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
                 errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
                 errno.ECONNREFUSED, errno.ECONNRESET}  # fmt: skip
# Errors in reading a file that may itself be intact.
MACHINES_ERRNO = PASSING_ERRNO | {errno.EACCES, errno.EPERM}

# Said of a workdir: to go on writing would create another one in its place.
GONE = "was moved or removed while being written to; under its new name, the run resumes from its last checkpoint"
LOST = 128 + signal.SIGABRT  # the exit code that JAX gives a process whose run has lost another one


class UserError(ValueError):
    """An error that the user can fix; its message is one line with what is wrong, the value, and the fix."""


class EndedError(Exception):
    """Raised when a process is asked to end before training begins; holds `Stop`'s code and a line on what is kept."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


def explain(error: BaseException) -> tuple[int, str | None]:
    """Returns (exit code, line for stderr) for the exception that ended a process; the line is None for a bug."""
    while isinstance(error, AsyncError) and error.__cause__:  # clu wraps what its threads raised, once for each
        error = error.__cause__
    if isinstance(error, EndedError):
        return error.code, str(error)
    if isinstance(error, (UserError, flags.Error)):
        return 2, f"error: {' '.join(str(error).split())}"
    if is_workdir_gone(error):
        return 2, f"error: {os.path.dirname(os.fsdecode(getattr(error, 'filename', '')))} {GONE}"
    if (number := errno_of(error)) in USERS_ERRNO:
        place = getattr(error, "filename", " ".join(str(error).split())[:200])
        fix = f"{FIXES.get(number, 'fix that')}, or use another folder"
        return 2, f"error: {os.strerror(number)}{f': {place}' if place else ''}; {fix}"
    if is_out_of_memory(error):
        reason = " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200]
        fix = "raise train.microbatches, set model.remat=true, or lower the batch_size of what was running"
        if isinstance(error, MemoryError):  # the host's memory, not a device's
            fix = "lower the n or batch_size of what was running, or set data.resident=false"
        return 2, f"error: out of memory ({reason}); {fix}"
    if isinstance(error, (RuntimeError, ValueError)) and "Gloo" in str(error):  # connects processes on CPUs
        reason = " ".join(str(error).split())[:200]
        return LOST, f"another process of this run was lost ({reason}); the same command resumes the run"
    if isinstance(error, KeyboardInterrupt):
        return interrupts.INTERRUPTED, "interrupted"
    return 1, None


def is_the_machines(error: BaseException) -> bool:
    """Whether it was the machine that failed to read a file, which says nothing about the file itself."""
    return is_out_of_memory(error) or errno_of(error) in MACHINES_ERRNO


def is_workdir_gone(error: BaseException | None) -> bool:
    """Whether TensorBoard's file, opened by name for each write, could not be written because its folder is gone."""
    name = getattr(error, "filename", None)
    return isinstance(error, FileNotFoundError) and bool(name) and "tfevents" in os.path.basename(os.fsdecode(name))


def errno_of(error: BaseException) -> int | None:
    """Returns the `errno` of an error, or None; TensorStore's and array_record's errors have it only in their text."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(found[1])
    words = re.search(r"\b(?:open|pread|read|fstat|lseek)\(\) failed: ([^;]+)", str(error))
    return next((number for number in MACHINES_ERRNO if words and os.strerror(number) == words[1]), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or an accelerator ran out of memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def quieten_threads() -> None:
    """Hides background threads' tracebacks of errors that the main thread raises too: a full disk, a failed save.

    Also repeats a Ctrl-C that Python dropped.
    """

    def tell_unraisable(told) -> None:
        if isinstance(told.exc_value, KeyboardInterrupt):
            interrupts.repeat()
        elif "Event loop is closed" not in str(told.exc_value):  # raised in TensorStore when a save fails
            sys.__unraisablehook__(told)

    def tell_thread(told) -> None:
        full = getattr(told.exc_value, "errno", None) in USERS_ERRNO
        if not full and not is_workdir_gone(told.exc_value):  # else it is TensorBoard's thread
            threading.__excepthook__(told)

    sys.unraisablehook, threading.excepthook = tell_unraisable, tell_thread
