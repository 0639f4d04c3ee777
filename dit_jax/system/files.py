"""Files that appear whole or not at all; names as users type them."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dit_jax.errors import UserError

HEX = "[0-9a-f]"


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` as the home folder: shells leave it alone behind a `=`.

    Raises:
      UserError: nobody has that home, or it is an address such as gs://bucket.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise UserError(
            f"{path}: it is an address, not a place on this machine; mount it, or name a folder or file here"
        )
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
    processes the later one's file stays. What killed ones of this machine left half-written of it is removed before.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, where a file belongs; move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path.parent} is no folder, where one belongs; move it away") from None
    temporary = path.with_name(f"{path.name}.{kernel()}{uuid.uuid4().hex[:8]}.tmp")
    with removing_left(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except OSError as error:
            if error.errno and not error.filename:  # a full disk's
                error.filename = str(path)
            raise
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an NPZ file, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextlib.contextmanager
def removing_left(path: Path) -> Iterator[None]:
    """Removes temporary files of `replacing(path)` unless someone is writing in that folder, as this process then is.

    Who writes there shares a lock on the folder, which ends with the process; who alone has it may remove. Network file
    systems keep a folder's locks on each machine, so only what was begun on this one is removed; where a folder cannot
    be locked, nothing. (A lock on the file itself would keep SMB from writing it.)
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # one that may be written but not read
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in path.parent.glob(f"{glob.escape(path.name)}.{kernel()}{HEX * 8}.tmp"):
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)  # which unlocks it


@cache
def kernel() -> str:
    """Eight hexadecimal digits for the running system that keeps this process's locks, from its start to its end."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # no Linux
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
