"""Files that appear whole or not at all; names as users type them."""

import contextlib
import fcntl
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from dit_jax.errors import UserError

HEX = "[0-9a-f]"


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` as the home folder: shells leave it alone behind a `=`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the whole path") from None


def real(path: str | Path) -> Path:
    """The absolute path without links; a loop of links stays as it is, where `Path.resolve` raises."""
    return Path(os.path.realpath(expanded(path)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an exception.

    A reader sees the old file or the new one, never a part; an exception leaves the old one. Folders are made. Of two
    processes the later one's file stays. What killed ones left half-written of it is removed before.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, where a file belongs; move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path.parent} is no folder, where one belongs; move it away") from None
    folder = os.open(path.parent, os.O_RDONLY)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        remove_left(path, folder)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk's
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(folder)  # which unlocks it


def remove_left(path: Path, folder: int) -> None:
    """Removes temporary files of `replacing(path)`, unless a process is writing in its folder, an open descriptor.

    Who writes there shares a lock on the folder, which ends with the process; who alone has it may remove. Where the
    file system has no such locks nothing is removed. (A lock on the file itself would keep SMB from writing it.)
    """
    with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in path.parent.glob(f"{glob.escape(path.name)}.{HEX * 8}.tmp"):
            left.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_SH)
