"""Errors that a user can mend: told in one line on stderr, without a traceback, with exit code 2."""

import errno
import signal
import sys

from absl import flags

# Full disks, folders that may not be written, files where folders should be: all else is a bug and keeps its traceback.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
               errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # fmt: skip


class UserError(ValueError):
    """A bad value from the user: one line with what is wrong, the value, and the fix."""


def explain(error: BaseException) -> tuple[int, str | None]:
    """(exit code, line for stderr) of what ended a process; no line for a bug."""
    if isinstance(error, (UserError, flags.Error)):
        return 2, f"error: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno in USERS_ERRNO:
        place = f": {error.filename}" if error.filename else ""
        return 2, f"error: {error.strerror}{place}; make room, or name another folder"
    if is_out_of_memory(error):
        reason = " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200]
        fix = "lower train.batch_size or sample.batch_size, or set model.remat=true"
        return 2, f"error: out of memory ({reason}); {fix}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    return 1, None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine or its accelerator had no room for something."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def tell_unraisable(told) -> None:
    """Python's own, but for what TensorStore's threads meet when a save fails; that is raised elsewhere too."""
    if "Event loop is closed" not in str(told.exc_value):
        sys.__unraisablehook__(told)
