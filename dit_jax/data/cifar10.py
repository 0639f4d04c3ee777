"""Prepares `cifar10`, TFDS's own data set, without TensorFlow, and is the command that does so from an archive.

    python -m dit_jax.data.cifar10 --archive cifar-10-binary.tar.gz --data_dir DIR [--allow_checksum_mismatch]

The records (id, image, label), their order, the name and the version are those of `tfds.load('cifar10')`. Without
--archive, it uses the archive in DIR/downloads/manual if there is one, and otherwise downloads the published one.

The archive is not trusted: it is decompressed as a stream limited to the size of the real one, nothing is written to
disk under a name from the archive, and all of it is checked before TFDS writes a byte.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the record layout is described at
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import argparse
import gzip
import hashlib
import io
import os
import shlex
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

from dit_jax import errors
from dit_jax.data import preparation
from dit_jax.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
NAMES_FILE = "batches.meta.txt"
RECORDS_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes, row by row
SMALL_BYTES = 1 << 20  # more than the rest of the published archive: two text files and the tar headers
VERSION = "3.0.2"


class Cifar10(cifar.Cifar10, skip_registration=True):
    """TFDS's builder without TensorFlow: it reads the archive with the standard library and yields PNG bytes."""

    url_infos: Any = cifar.Cifar10.url_infos  # a subclass does not inherit the checksums

    def __init__(self, *, archive: Path | None, **kwargs):
        """Takes an archive whose checksum is already checked, or None to download the published one."""
        self._archive = archive
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        files = read_archive(self._archive or self._download(dl_manager))
        features: Any = self.info.features
        features["label"].names = list(CLASS_NAMES)
        return {split: self._generate_examples(split, [files[n] for n in names]) for split, names in FILES.items()}

    def _download(self, dl_manager) -> Path:
        url = self._cifar_info.url
        try:
            # Fails fast: TFDS itself would retry for minutes.
            requests.head(url, timeout=10, allow_redirects=True).raise_for_status()
            return Path(dl_manager.download(url))
        except Exception as error:  # the network fails in many ways, and TFDS wraps none of them
            data_dir = self.data_path.parent.parent
            raise UserError(
                f"no data set cifar10 in {data_dir}, and {url} cannot be downloaded ({type(error).__name__}): "
                f"copy the archive to this machine and run `{command(data_dir)}`"
            ) from error

    def _generate_examples(self, split_prefix, filepaths):
        """Yields the records of one split; `filepaths` are the checked contents of its files."""
        records = (record for content in filepaths for record in iterate_records(content))
        for index, (label, image) in enumerate(records):
            record = {"id": f"{split_prefix}_{index:05d}", "image": preparation.png(image), "label": label}
            yield index, record


def iterate_records(content: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the records of one file: a label in 0..9 and an image, uint8 [H, W, C]."""
    for record in np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES):
        yield int(record[0]), record[1:].reshape(3, 32, 32).transpose(1, 2, 0)


class _Bounded(io.BufferedIOBase):
    """A decompressed stream that raises a UserError beyond `limit` bytes, however small the archive that it is from."""

    def __init__(self, stream: gzip.GzipFile, limit: int):
        self._stream, self._left = stream, limit

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError("the archive unpacks to more data than CIFAR-10 has: is it cifar-10-binary.tar.gz?")
        return data


def read_archive(path: Path) -> dict[str, bytes]:
    """Returns the checked contents of the archive's six binary files, by name.

    Raises UserError for anything but the published layout: a damaged or truncated archive, members outside its folder,
    links, wrong sizes, missing or repeated files, labels outside 0..9, other class names.
    """
    limit = sum(map(len, FILES.values())) * RECORDS_PER_FILE * RECORD_BYTES + SMALL_BYTES
    contents: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(path) as unpacked:
            stream = _Bounded(unpacked, limit)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    _read_member(tar, member, contents)
            while stream.read(SMALL_BYTES):  # to the end, where gzip verifies its own checksum
                pass
    except UserError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{path} is not a complete gzip-compressed tar archive ({error}): download it again") from error
    _check_contents(path, contents)
    return contents


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, contents: dict[str, bytes]) -> None:
    """Adds a member to `contents` if it is one of the seven needed; refuses one that the real archive cannot hold."""
    folder, _, name = member.name.removeprefix("./").partition("/")
    if folder != FOLDER or "/" in name or name == "..":
        raise UserError(f"archive member {member.name!r} lies outside the folder {FOLDER}: archive refused")
    if member.issparse() or not (member.isfile() or (member.isdir() and not name)):
        raise UserError(f"archive member {member.name!r} is not a plain file: archive refused")
    if name in contents:
        raise UserError(f"archive member {member.name!r} occurs twice: archive refused")
    binary = any(name in names for names in FILES.values())
    expected = RECORDS_PER_FILE * RECORD_BYTES
    if binary and member.size != expected:
        raise UserError(
            f"archive member {member.name!r} has {member.size} bytes, not {expected} "
            f"({RECORDS_PER_FILE} records of {RECORD_BYTES}): archive refused"
        )
    if name == NAMES_FILE and member.size > SMALL_BYTES:
        raise UserError(
            f"archive member {member.name!r} has {member.size} bytes, too many for ten names: archive refused"
        )
    if binary or name == NAMES_FILE:
        contents[name] = _read_content(tar, member)


def _read_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the bytes of a member. Raises EOFError if the archive ends within it."""
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise EOFError(f"it ends within {member.name}")
    return content


def _check_contents(path: Path, contents: dict[str, bytes]) -> None:
    """Raises UserError unless all files are present, with labels in 0..9 and the known class names.

    Removes the file of class names from `contents`.
    """
    binaries = [name for names in FILES.values() for name in names]
    missing = [name for name in (*binaries, NAMES_FILE) if name not in contents]
    if missing:
        raise UserError(f"{path} lacks {FOLDER}/{missing[0]}: is it cifar-10-binary.tar.gz?")
    for name in binaries:
        labels = np.frombuffer(contents[name], np.uint8)[::RECORD_BYTES]
        wrong = np.flatnonzero(labels >= len(CLASS_NAMES))
        if wrong.size:
            raise UserError(f"{path}: record {wrong[0]} of {name} has label {labels[wrong[0]]}, expected 0..9")
    names = tuple(contents.pop(NAMES_FILE).decode("utf-8", "replace").split())
    if names != CLASS_NAMES:
        raise UserError(f"{path}: {NAMES_FILE} names the classes {names}, not {CLASS_NAMES}")


def checksum_mismatch(archive: Path) -> str:
    """Describes how the archive differs from the published one, by sizes and SHA-256; '' if it is the published one.

    Raises UserError if the archive cannot be read.
    """
    (published,) = Cifar10.url_infos.values()
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise UserError(
            f"cannot read the archive {archive} ({error.strerror}): give the path of cifar-10-binary.tar.gz"
        ) from None
    if actual == published.checksum:
        return ""
    return (
        f"{archive} ({size} bytes) has SHA-256 {actual}, "
        f"but the published archive ({int(published.size)} bytes) has {published.checksum}"
    )


def command(data_dir: str | os.PathLike, archive: str | os.PathLike = "cifar-10-binary.tar.gz") -> str:
    """Returns the command line that prepares the data set in `data_dir`, as a user would type it."""
    return shlex.join(
        ["python", "-m", "dit_jax.data.cifar10", "--archive", os.fspath(archive), "--data_dir", os.fspath(data_dir)]
    )


def check_checksum(archive: Path, data_dir: Path, allow_mismatch: bool) -> None:
    """Raises UserError for an archive other than the published one, or prints a warning if a mismatch is allowed."""
    mismatch = checksum_mismatch(archive)
    if mismatch and not allow_mismatch:
        accept = f"{command(data_dir, archive)} --allow_checksum_mismatch"
        raise UserError(f"{mismatch}: download it again, or accept this one with `{accept}`")
    if mismatch:
        print(f"WARNING: CHECKSUM MISMATCH ACCEPTED, this may not be CIFAR-10: {mismatch}", file=sys.stderr)


def prepare(data_dir: Path, archive: Path | None = None, allow_checksum_mismatch: bool = False) -> Path:
    """Prepares data_dir/cifar10/VERSION unless it exists, and returns that folder.

    It reads `archive` if given, else the one in data_dir/downloads/manual, else a download. If it raises UserError,
    nothing is left that could be taken for a data set.
    """
    directory = data_dir / Cifar10.name / VERSION
    manual = data_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    archive = archive or (manual if manual.exists() else None)
    if archive and not preparation.is_prepared(directory):
        check_checksum(archive, data_dir, allow_checksum_mismatch)

    def make() -> None:
        print(f"preparing the data set cifar10 in {directory} from {archive or 'the network'}", file=sys.stderr)
        tfds.enable_progress_bar()
        preparation.write(Cifar10(archive=archive, data_dir=data_dir, file_format="array_record"))

    return preparation.once(directory, directory.parent, make)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line, and returns the exit status: 0, 2 for a user's error, or 130 for Ctrl-C."""
    parser = _Parser(prog="python -m dit_jax.data.cifar10", description="Prepares CIFAR-10 for training.")
    parser.add_argument(
        "--archive",
        type=Path,
        help="path of cifar-10-binary.tar.gz (default: the one in downloads/manual, or a download)",
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="folder in which TFDS stores data sets")
    parser.add_argument(
        "--allow_checksum_mismatch", action="store_true", help="accept an archive with another checksum"
    )
    try:
        args = parser.parse_args(argv)
        data_dir = preparation.check_data_dir(args.data_dir)
        there = preparation.is_prepared(data_dir / Cifar10.name / VERSION)
        directory = prepare(data_dir, args.archive, args.allow_checksum_mismatch)
    except (Exception, KeyboardInterrupt) as error:
        code, line = errors.explain(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return code
    print(f"cifar10 {'was already' if there else 'is'} prepared in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
