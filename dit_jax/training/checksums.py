"""SHA256SUMS: what tells a whole folder from a damaged one, to the bit. `sha256sum -c SHA256SUMS` reads it too."""

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"


class Damaged(ValueError):
    """A folder that is not what it was when its sums were written; says what differs."""


def write(folder: Path) -> None:
    """Writes the sum of every file in the folders within `folder`; those beside SHA256SUMS itself are left out."""
    lines = [f"{_sum(path)}  {name}\n" for name, path in sorted(_files(folder).items())]
    (folder / NAME).write_text("".join(lines))


def check(folder: Path) -> None:
    """Reads every file once and compares.

    Raises:
      Damaged: no sums, or a file that is missing, unknown (and not a hidden one) or has other bytes.
      OSError: a file that cannot be read.
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
        if _sum(files[name]) != known[name]:
            raise Damaged(f"{name} has other bytes than were written")


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.glob("*/**/*") if p.is_file()}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
