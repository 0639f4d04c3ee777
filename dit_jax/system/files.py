"""Writes files that appear whole or not at all, and resolves paths as users type them."""

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
    """Returns the path with a leading `~` replaced by the home folder: shells leave it alone after a `=`.

    Raises:
      UserError: the home folder is unknown, or the path is an address such as gs://bucket.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise UserError(
            f"{path}: it is an address, not a path on this machine; mount it, or use a local folder or file"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the full path") from None


def real(path: str | Path) -> Path:
    """Returns the absolute path without links; a loop of links stays as it is, where `Path.resolve` raises."""
    return Path(os.path.realpath(expanded(path)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an exception.

    A reader sees the old file or the new one, never a part; an exception leaves the old one. Missing folders are
    created. If two processes write, the later one's file stays. Partial files of killed processes of this machine are
    removed first.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, but must be a file; move it elsewhere")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path.parent} is not a folder, but must be one; move it elsewhere") from None
    temporary = path.with_name(f"{path.name}.{kernel()}{uuid.uuid4().hex[:8]}.tmp")
    with removing_left(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except OSError as error:
            if error.errno and not error.filename:  # such as that of a full disk
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
    """Removes leftover temporary files of `replacing(path)` unless another process is writing in that folder.

    Every writer holds a shared lock on the folder, as this process does within the block, and a lock ends with its
    process; only an exclusive lock permits the removal. Network file systems keep a folder's locks on each machine, so
    only files begun on this machine are removed; if a folder cannot be locked, none are. (A lock on the file itself
    would keep SMB from writing it.)
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # a folder that may be written but not read
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
    """Returns eight hexadecimal digits for the running system, which keeps this process's locks until it shuts down."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
