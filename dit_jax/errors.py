"""Errors that a user can mend: told in one line on stderr, without a traceback, with exit code 2."""

import errno
import os
import re
import signal
import sys
import threading

from absl import flags
from clu.asynclib import AsyncError

# Full disks, folders that may not be written, files where folders should be: all else is a bug and keeps its traceback.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
               errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # fmt: skip
FIXES = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "make room",
         errno.EISDIR: "move that folder away", errno.ENOTDIR: "move the file in its way away"}  # fmt: skip
# What keeps any file from being read for a while: no memory, no handles, no file server. Not EIO: a bad disk says so.
PASSING_ERRNO = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
                 errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
                 errno.ECONNREFUSED, errno.ECONNRESET}  # fmt: skip
# What keeps a file from being read though it may be whole.
MACHINES_ERRNO = PASSING_ERRNO | {errno.EACCES, errno.EPERM}

# Of a workdir. What is written later would begin another one in its place.
GONE = "was moved or removed while it was written to; under its new name the run goes on from its last checkpoint"
LOST = 128 + signal.SIGABRT  # what JAX ends a process with whose run has lost another


class UserError(ValueError):
    """A bad value from the user: one line with what is wrong, the value, and the fix."""


class EndedError(Exception):
    """What ends a process that was asked to end in its preparations: `Stop`'s code, and a line of what is kept."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


def explain(error: BaseException) -> tuple[int, str | None]:
    """(exit code, line for stderr) of what ended a process; no line for a bug."""
    if isinstance(error, AsyncError) and error.__cause__:  # clu's, of what a thread of its raised
        error = error.__cause__
    if isinstance(error, EndedError):
        return error.code, str(error)
    if isinstance(error, (UserError, flags.Error)):
        return 2, f"error: {' '.join(str(error).split())}"
    if is_workdir_gone(error):
        return 2, f"error: {os.path.dirname(os.fsdecode(getattr(error, 'filename', '')))} {GONE}"
    if (number := errno_of(error)) in USERS_ERRNO:
        place = getattr(error, "filename", " ".join(str(error).split())[:200])
        fix = f"{FIXES.get(number, 'mend that')}, or name another folder"
        return 2, f"error: {os.strerror(number)}{f': {place}' if place else ''}; {fix}"
    if is_out_of_memory(error):
        reason = " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200]
        fix = "raise train.microbatches, set model.remat=true, or lower the batch_size of what ran"
        if isinstance(error, MemoryError):  # the computer's, not a device's
            fix = "lower the n or batch_size of what ran, or set data.resident=false"
        return 2, f"error: out of memory ({reason}); {fix}"
    if isinstance(error, RuntimeError) and "Gloo" in str(error):  # the CPUs' link between processes
        reason = " ".join(str(error).split())[:200]
        return LOST, f"another process of this run was lost ({reason}); the same command goes on"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    return 1, None


def is_the_machines(error: BaseException) -> bool:
    """Whether the machine failed to read a file, which says nothing of the file."""
    return is_out_of_memory(error) or errno_of(error) in MACHINES_ERRNO


def is_workdir_gone(error: BaseException | None) -> bool:
    """Whether TensorBoard's file, which is opened by its name each time, could not be written for want of a folder."""
    name = getattr(error, "filename", None)
    return isinstance(error, FileNotFoundError) and bool(name) and "tfevents" in os.path.basename(os.fsdecode(name))


def errno_of(error: BaseException) -> int | None:
    """The operating system's number of what went wrong; TensorStore and array_record have it in their errors' text."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(found[1])
    words = re.search(r"\b(?:open|pread|read|fstat|lseek)\(\) failed: ([^;]+)", str(error))
    return next((number for number in MACHINES_ERRNO if words and os.strerror(number) == words[1]), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine or its accelerator had no room for something."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def quieten_threads() -> None:
    """No traceback from background threads of what is raised in the main one too: a full disk, a save that failed."""

    def tell_unraisable(told) -> None:
        if "Event loop is closed" not in str(told.exc_value):  # TensorStore's, when a save fails
            sys.__unraisablehook__(told)

    def tell_thread(told) -> None:
        full = getattr(told.exc_value, "errno", None) in USERS_ERRNO
        if not full and not is_workdir_gone(told.exc_value):  # else TensorBoard's
            threading.__excepthook__(told)

    sys.unraisablehook, threading.excepthook = tell_unraisable, tell_thread
