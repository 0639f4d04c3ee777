"""Files with one JSON object per line: rows are appended, and partial lines of killed processes are ignored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from dit_jax.errors import UserError
from dit_jax.system.files import replacing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, oldest first; none if there is no file.

    A row is `{"step": int, name: number or null, ...}`. Other lines, such as the partial line that a killed process
    leaves, are skipped.
    """
    return [row for row in map(parse, _lines(path)) if row is not None]


def read_objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the objects in a file with one JSON object per line, and how many lines hold no object.

    A partial last line, which a process may still be writing, holds no object. A missing file has no lines.
    """
    objects, damaged = [], 0
    for line in filter(bytes.strip, _lines(path)):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            objects.append(found)
        else:
            damaged += 1
    return objects, damaged


def opened(path: Path) -> TextIO:
    """Opens a file to append to. Raises UserError if its folder, or the one that it links into, does not exist."""
    try:
        return path.open("a", encoding="utf-8", buffering=1)
    except FileNotFoundError:
        if not path.is_symlink():
            gone = f"{path.parent} was moved or removed while being written to"
            raise UserError(f"{gone}; repeat the command with its new name") from None
        raise UserError(
            f"{path} is a link into a missing folder; mount or create that folder, or remove the link"
        ) from None


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row; a partial line that a killed process left stays a line of its own."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with opened(path) as file:
        file.write("\n" * torn + json.dumps(row) + "\n")


def drop_rows_after(path: Path, step: int) -> None:
    """Removes, atomically, the rows beyond `step` and any broken line, so that a resumed run writes no row twice."""
    lines = _lines(path)
    kept = [line for line in lines if (row := parse(line)) is not None and row["step"] <= step]
    whole = b"".join(line.rstrip(b"\n") + b"\n" for line in kept)
    if whole != b"".join(lines):
        with replacing(path) as temporary:
            temporary.write_bytes(whole)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def parse(line: bytes) -> dict[str, Any] | None:
    """Returns the row in a line, or None if the line is not a row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, endless nesting
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
