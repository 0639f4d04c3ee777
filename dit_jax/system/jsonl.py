"""Files with one JSON object per line: rows are appended, and partial lines of killed processes are ignored."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from dit_jax.errors import UserError
from dit_jax.system.files import replacing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, oldest first; none if there is no file.

    A row is `{"step": int, name: number or null, ...}`. Other lines, such as the partial line that a killed process
    leaves, are skipped.
    """
    return [row for row in read_objects(path)[0] if isinstance(row.get("step"), int)]


def read_objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the objects in a file with one JSON object per line, and how many lines hold no object.

    A partial last line, which a process may still be writing, holds no object. A missing file has no lines.
    """
    found = [_parse(line) for line in _lines(path) if line.strip()]
    objects = [one for one in found if one is not None]
    return objects, len(found) - len(objects)


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
    keep_lines(path, lambda row: bool(row) and isinstance(row.get("step"), int) and row["step"] <= step)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any] | None], bool]) -> None:
    """Removes, atomically, the lines whose object is not `wanted` (None stands for a line without one).

    The lines that stay all end in a newline. If that changes nothing, the file is not touched.
    """
    lines = _lines(path)
    kept = b"".join(line.rstrip(b"\n") + b"\n" for line in lines if wanted(_parse(line)))
    if kept != b"".join(lines):
        with replacing(path) as temporary:
            temporary.write_bytes(kept)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the object in a line, or None if the line does not hold one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, endless nesting
        return None
    return found if isinstance(found, dict) else None
