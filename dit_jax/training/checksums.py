"""Writes and checks SHA256SUMS, which reveals any changed bit in a checkpoint; `sha256sum -c` reads it too."""

import hashlib
import os
from pathlib import Path

NAME = "SHA256SUMS"


class Damaged(ValueError):
    """Raised for a folder that differs from what its checksums were written for; the message says how."""


def write(folder: Path) -> None:
    """Writes the checksum of every file in the subfolders of `folder`; files beside SHA256SUMS itself are left out."""
    lines = [f"{_sum(path)}  {name}\n" for name, path in sorted(_files(folder).items())]
    (folder / NAME).write_text("".join(lines))


def check(folder: Path) -> None:
    """Reads every file once and compares its checksum.

    Raises:
      Damaged: the checksums are missing or not text, or a file is missing, has other bytes, or is unknown, not hidden.
      OSError: a file or a folder cannot be read.
    """
    try:
        lines = (folder / NAME).read_text().splitlines()
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing") from None
    except UnicodeDecodeError:
        raise Damaged(f"{NAME} is not text") from None
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = _files(folder)
    hidden = {name for name in files.keys() - known.keys() if "/." in f"/{name}"}  # .DS_Store, .nfs..., .AppleDouble/
    for name in sorted((known.keys() | files.keys()) - hidden):
        if name not in files:
            raise Damaged(f"{name} is missing")
        if name not in known:
            raise Damaged(f"{name} is not in {NAME}")
        try:
            changed = _sum(files[name]) != known[name]
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None  # it is a link to nowhere
        if changed:
            raise Damaged(f"{name} has changed since it was written")


def _files(folder: Path) -> dict[str, Path]:
    """Returns the files below `folder` by name; unlike `Path.glob`, it raises OSError for a folder it cannot read."""

    def fail(error: OSError) -> None:
        raise error

    found = [Path(at, name) for at, _, names in os.walk(folder, onerror=fail, followlinks=True) for name in names]
    return {path.relative_to(folder).as_posix(): path for path in found if path.parent != folder}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
