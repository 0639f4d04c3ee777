"""Stores the latents of a split: they are encoded once, kept on disk in the order of the data, and read like images.

FOLDER holds them in parts, PART.array_record, whose records are a label and its latents. A part appears whole or not at
all, so an encoding that was killed continues with the first missing part.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from dit_jax.data.datasets import Records, Split, delete_and, told_as_damage
from dit_jax.data.stream import Reader, threads_here
from dit_jax.errors import UserError
from dit_jax.system.files import replacing

HALF_MADE = "*.tmp"  # files that a killed encoding leaves in the folder
PART_BYTES = 2**28
WRITER = "group_size:1,uncompressed"  # ungrouped, for random access; uncompressed, as floats hardly shrink
LABEL, LATENT = np.dtype("<i4"), np.dtype("<f4")


@dataclass(frozen=True)
class Encoder:
    """encode(images uint8 [n, H, W, C]) -> float32 [n, *shape] for n up to `batch_size`; see `Split` for the shape."""

    encode: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    batch_size: int


def nbytes(count: int, shape: tuple[int, ...]) -> int:
    """Returns the size of the latents of `count` images in bytes."""
    return count * math.prod(shape) * LATENT.itemsize


def parts(folder: Path, count: int, shape: tuple[int, ...]) -> dict[Path, range]:
    """Returns the files that hold the latents of `count` images, each with its range of examples."""
    size = max(1, PART_BYTES // nbytes(1, shape))
    starts = range(0, count, size)
    return {
        folder / f"{i:05d}-of-{len(starts):05d}.array_record": range(start, min(start + size, count))
        for i, start in enumerate(starts)
    }


def missing(folder: Path, count: int, shape: tuple[int, ...]) -> int:
    """Returns how many examples are in no file yet."""
    return sum(len(part) for path, part in parts(folder, count, shape).items() if not path.is_file())


def keep(
    images: Records, folder: Path, encoder: Encoder, told: Callable[[int], None], kept: Callable[[], None]
) -> None:
    """Encodes the parts that are missing in `folder`.

    It calls `told(n)` after each batch with the number of examples encoded in all, and `kept()` after each part. Either
    may raise.

    Raises:
      UserError: the disk is full, or the images are damaged.
    """
    done = images.count - missing(folder, images.count, encoder.shape)
    for path, part in parts(folder, images.count, encoder.shape).items():
        if path.is_file():
            continue
        try:
            with replacing(path) as temporary:
                temporary.touch()  # fails with an OSError that has a path; array_record's errors are only text
                for count in write(temporary, images, part, encoder):
                    done += count
                    told(done)
            kept()
        except RuntimeError as error:
            if "write() failed" not in str(error):  # array_record's message for a full disk
                raise
            fix = "make room, or use another data.data_dir"
            raise UserError(f"cannot write latents to {folder} ({error}): {fix}") from None


def write(path: Path, images: Records, part: range, encoder: Encoder) -> Iterator[int]:
    """Writes the latents of the examples in `part` in batches, and yields the size of each."""
    threads, size = threads_here(), encoder.batch_size
    count = -(-len(part) // size)

    def read(i: int) -> Split:
        return images.read(np.asarray(part[i * size : (i + 1) * size]))

    reader, writer = Reader(read, count, ahead=threads, threads=threads), ArrayRecordWriter(str(path), WRITER)
    try:
        for i in range(count):
            batch = reader.batch(i)
            latents = np.ascontiguousarray(encoder.encode(batch.images), LATENT)
            for label, latent in zip(batch.labels.astype(LABEL), latents, strict=True):
                writer.write(label.tobytes() + latent.tobytes())
            yield len(latents)
    finally:
        reader.close()
        writer.close()


def open_kept(folder: Path, count: int, shape: tuple[int, ...]) -> Records:
    """Opens the latents that `keep` has made of `count` images.

    Raises UserError, here or on reading them, that names the part that is damaged.
    """
    files = parts(folder, count, shape)
    sources = [open_part(path, len(part)) for path, part in files.items()]
    size = len(next(iter(files.values())))

    def read(indices: np.ndarray) -> Split:
        labels, latents = np.empty(len(indices), np.int32), np.empty((len(indices), *shape), np.float32)
        for i in np.unique(indices // size):
            mine = np.flatnonzero(indices // size == i)
            labels[mine], latents[mine] = sources[i]((indices[mine] % size).tolist(), shape)
        return Split(latents, labels)

    return Records(count, shape, read, lambda indices: read(indices).labels, np.float32)


def open_part(path: Path, count: int) -> Callable[[list[int], tuple[int, ...]], tuple[np.ndarray, np.ndarray]]:
    """Opens a part of `count` records; returns read(record indices, shape) -> (labels, latents)."""
    fix = delete_and(path, "the same command again, which encodes those images again")
    with told_as_damage(path, fix):
        source = ArrayRecordDataSource([str(path)])
        if len(source) != count:
            raise ValueError(f"expected {count} records, got {len(source)}")

    def read(records: list[int], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        with told_as_damage(path, fix):
            found = source.__getitems__(records)
            labels = np.frombuffer(b"".join(record[: LABEL.itemsize] for record in found), LABEL)
            latents = np.frombuffer(b"".join(record[LABEL.itemsize :] for record in found), LATENT)
            return labels, latents.reshape(len(records), *shape)

    return read
