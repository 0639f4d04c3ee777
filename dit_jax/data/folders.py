"""Lists a folder of pictures, root/CLASS/PICTURE: its classes and splits, and errors for what cannot be used.

Nothing is decoded here. Names that begin with a dot are ignored; links are followed.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from dit_jax.data.pictures import FORMATS
from dit_jax.errors import UserError
from dit_jax.system.files import expanded

TEST_FOLDERS = ("test", "val", "validation")
HELD_OUT = 20  # without a test folder, one in 20 pictures of a class is held out: at least one, if it has two or more
WANTED = f"pictures are {', '.join(FORMATS)}"


class Picture(NamedTuple):
    """A picture file: its path relative to the root, class index, size in bytes and modification time."""

    path: str
    label: int
    size: int
    mtime_ns: int


class Listing(NamedTuple):
    """The classes of a root, sorted by name, and the pictures of each split, sorted by path."""

    class_names: tuple[str, ...]
    splits: dict[str, list[Picture]]
    held_out: bool  # whether the test pictures were taken from the training ones
    unused: tuple[str, ...] = ()  # lines on files and folders that are not used

    def content(self) -> str:
        """Returns a hash of every picture's split, path, label, size and modification time."""
        digest = hashlib.sha256()
        for split, pictures in self.splits.items():
            for picture in pictures:
                line = "\0".join(map(str, (split, *picture))) + "\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def check_root(root: str) -> Path:
    """Returns the root with `~` expanded. Raises UserError if it is not a folder."""
    layout = "use one with a folder of pictures for each class, ROOT/CLASS/PICTURE.png"
    path = expanded(root)
    if not path.exists():
        fix = "a run that has begun continues without --config, from its prepared copy"
        raise UserError(f"data.root={root}: there is no such folder; {layout} ({fix})")
    if not path.is_dir():
        raise UserError(f"data.root={root}: it is a file; {layout}")
    return path


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns a folder's entries, sorted by name, without hidden ones. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            kept = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in kept:
            entry.is_dir()  # follows links, so that a circular one raises here
        return kept
    except OSError as error:
        where, fix = error.filename or folder, "fix its permissions, or remove it"
        raise UserError(f"data.root: {where} cannot be read ({error.strerror}); {fix}") from None


def split_folders(root: Path) -> dict[str, Path]:
    """Returns {"train": root/train, "test": root/test} if the root has such folders, else {"train": root}.

    The test folder may have any name of `TEST_FOLDERS`; no other folders may lie beside these.
    """
    folders = [entry.name for entry in entries(root) if entry.is_dir()]
    tests = [name for name in TEST_FOLDERS if name in folders]
    parted = "train" in folders and tests and not set(folders) - {"train", *TEST_FOLDERS}
    if parted and any(entry.is_dir() for entry in entries(root / "train")):
        return {"train": root / "train", "test": root / tests[0]}
    return {"train": root}


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the class folders, sorted.

    Raises UserError if there are none, if pictures lie beside them, or if a name has unprintable characters.
    """
    found = entries(folder)
    loose = [entry.name for entry in found if is_picture(entry.name) and not entry.is_dir()]
    if loose:
        fix = f"move it into a folder named after its class, such as {folder / 'CLASS' / loose[0]}"
        raise UserError(f"data.root: the picture {folder / loose[0]} is not in a class folder; {fix}")
    names = [entry.name for entry in found if entry.is_dir()]
    if not names:
        raise UserError(f"data.root: {folder} has no class folder; make one for each class, with its pictures in it")
    for name in names:
        if not name.isprintable():
            raise UserError(f"data.root: the class folder {str(folder / name)!r} has unprintable characters; rename it")
    return names


def class_names(root: str) -> tuple[str, ...]:
    """Returns the classes of a root from its folders alone. Raises UserError as `scan` does."""
    return tuple(class_folders(split_folders(check_root(root))["train"]))


def scan(root: str) -> Listing:
    """Lists every picture of a root.

    Raises a one-line UserError if there is no folder or no class, if a class is empty or contains folders, for broken
    links, and for a test class without training pictures.
    """
    path = check_root(root)
    parts = split_folders(path)
    names = class_folders(parts["train"])
    left_out = [entry.path for entry in entries(path) if entry.is_file()]
    splits: dict[str, list[Picture]] = {}
    for split, folder in parts.items():
        mine = class_folders(folder)
        strange = sorted(set(mine) - set(names))
        if strange:
            fix = f"make {parts['train'] / strange[0]}, or remove it"
            raise UserError(f"data.root: {folder / strange[0]} is a class without training pictures; {fix}")
        splits[split] = [p for name in mine for p in list_class(path, folder / name, names.index(name), left_out)]
    unused = [f"files ignored: {len(left_out)}, such as {min(left_out)}; {WANTED}"] if left_out else []
    if "test" not in splits:
        return Listing(tuple(names), hold_out(splits["train"]), True, tuple(unused))
    for other in (path / name for name in TEST_FOLDERS):
        if other.is_dir() and not other.samefile(parts["test"]):
            unused.append(f"{other} is not used: the test pictures are those of {parts['test']}")
    return Listing(tuple(names), splits, False, tuple(unused))


def is_picture(name: str) -> bool:
    """Returns whether a file's name has the extension of a picture."""
    return os.path.splitext(name)[1].lower() in FORMATS


def list_class(root: Path, folder: Path, label: int, left_out: list[str]) -> list[Picture]:
    """Returns the pictures of one class, and adds other files to `left_out`.

    Raises UserError if there are no pictures, or if there are folders or broken links among them.
    """
    pictures = []
    for entry in entries(folder):
        if entry.is_dir():
            fix = "move its pictures into the class folder, or move it elsewhere"
            if folder.name in ("train", *TEST_FOLDERS):
                fix = "to be used as splits, train and test (or val) must be the only folders of the root"
            raise UserError(f"data.root: {entry.path} is a folder within a class; {fix}")
        if not is_picture(entry.name):
            left_out.append(entry.path)
            continue
        if not entry.is_file():
            raise UserError(f"data.root: {entry.path} is not a file (a broken link?); remove it")
        found = entry.stat()
        pictures.append(Picture(os.path.relpath(entry.path, root), label, found.st_size, found.st_mtime_ns))
    if not pictures:
        raise UserError(f"data.root: {folder} has no pictures ({WANTED}); add some or remove the folder")
    return pictures


def hold_out(pictures: list[Picture]) -> dict[str, list[Picture]]:
    """Splits each class by a hash of its pictures' paths, so that a new picture moves at most one other."""
    classes: dict[int, list[Picture]] = {}
    for picture in pictures:
        classes.setdefault(picture.label, []).append(picture)
    splits: dict[str, list[Picture]] = {"train": [], "test": []}
    for mine in classes.values():
        count = max(round(len(mine) / HELD_OUT), int(len(mine) > 1))
        ranked = sorted(mine, key=lambda p: hashlib.sha256(p.path.encode("utf-8", "surrogateescape")).digest())
        chosen = set(ranked[:count])
        splits["test"] += [picture for picture in mine if picture in chosen]
        splits["train"] += [picture for picture in mine if picture not in chosen]
    return splits
