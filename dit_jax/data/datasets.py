"""The data sets: what they are (`info`, no disk touched), and their splits, read as asked or whole.

TFDS prepares and stores (`shapes.py`, `cifar10.py`). The order is that of the TFDS split, which is fixed. A new data
set is an entry here beside a `prepare` of its own.
"""

import io
import json
import math
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dit_jax.data import cifar10, image_folder, preparation, shapes
from dit_jax.errors import UserError, is_the_machines

SPLITS = ("train", "test")
PROBED = 64  # examples by which two splits are told apart
CHUNK = 1000  # records read in one call: one by one takes longer than decoding them


@dataclass(frozen=True)
class Source:
    """Which data set, and where TFDS keeps it; `folder` is what `image_folder` is made from."""

    name: str
    data_dir: str | Path
    folder: image_folder.Folder | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any of it is read. image_shape is (H, W, C)."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class Split(NamedTuple):
    """Examples, a whole split or some of it: images uint8 [n, H, W, C] in 0..255, labels int32 [n].

    Of latents, `images` is float32 [n, h, w, c], or [n, 2, h, w, c] with those of the mirrored image (data/latents.py).
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Records:
    """`count` examples in a fixed order; `read(indices)` gives some, decoded, in any thread.

    `image_shape` and `dtype` are those of one of `Split.images`. `read_labels(indices)` gives labels, int32 [n], and
    decodes nothing. `origin` names what was prepared: data set, version, and of pictures the content of their folder.
    """

    count: int
    image_shape: tuple[int, ...]
    read: Callable[[np.ndarray], Split]
    read_labels: Callable[[np.ndarray], np.ndarray]
    dtype: type[np.generic] = np.uint8
    origin: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return self.count * math.prod(self.image_shape) * self.dtype().itemsize

    def chunks(self) -> Iterator[Split]:
        """All examples, some at a time."""
        for indices in self._parts():
            yield self.read(indices)

    def labels(self) -> np.ndarray:
        """All labels, int32 [count]."""
        return np.concatenate([self.read_labels(indices) for indices in self._parts()])

    def probe(self) -> list[Any]:
        """What tells a split from another without reading all of it, as JSON: how many, and some of them."""
        some = self.read(np.unique(np.linspace(0, self.count - 1, PROBED).astype(int)))
        return [self.count, zlib.crc32(some.images.tobytes()), some.labels.tolist()]

    def first(self, count: int) -> "Records":
        """The first `count` examples, or all if there are fewer."""
        return replace(self, count=min(count, self.count))

    def load(self, wanted: Callable[[], bool] = lambda: True) -> Split:
        """All examples. Once they are no longer `wanted`, asked now and then, the rest stays unread: any bytes."""
        whole = Split(np.empty((self.count, *self.image_shape), self.dtype), np.empty(self.count, np.int32))
        for indices in self._parts():
            whole.images[indices], whole.labels[indices] = self.read(indices)
            if not wanted():
                break
        return whole

    def _parts(self) -> Iterator[np.ndarray]:
        return (np.arange(i, min(i + CHUNK, self.count)) for i in range(0, self.count, CHUNK))


DATASETS = {
    "shapes": DatasetInfo("shapes", (32, 32, 3), shapes.CLASS_NAMES),
    "cifar10": DatasetInfo("cifar10", (32, 32, 3), cifar10.CLASS_NAMES),
}
PREPARE: dict[str, Callable[[Path], Path]] = {"shapes": shapes.prepare, "cifar10": cifar10.prepare}
REMAKE: dict[str, Callable[[Path], str]] = {
    "shapes": lambda data_dir: "the same command again, which draws it",
    "cifar10": lambda data_dir: f"`{cifar10.command(data_dir)}`",
    image_folder.NAME: lambda data_dir: "the same command again, which reads the pictures again",
}


def info(name: str, folder: image_folder.Folder | None = None) -> DatasetInfo:
    """The facts about data set `name`. Raises UserError with the known names."""
    if name == image_folder.NAME and folder:
        return DatasetInfo(name, (folder.image_size, folder.image_size, 3), folder.class_names)
    if name not in DATASETS:
        raise UserError(f"data.name: no data set {name!r}, choose one of {', '.join((*DATASETS, image_folder.NAME))}")
    return DATASETS[name]


def load(name: str, data_dir: str | Path, split: str = "train") -> Split:
    """All images and labels of a split of `shapes` or `cifar10`, see `open_split`."""
    return open_split(Source(name, data_dir), split).load()


def refresh(source: Source) -> Source:
    """The source with the content that its folder has now, see `image_folder.refresh`; others do not change."""
    if source.folder is None:
        return source
    return replace(source, folder=image_folder.refresh(source.folder, preparation.check_data_dir(source.data_dir)))


def open_split(source: Source, split: str = "train") -> Records:
    """A split ('train' or 'test'), none of it read yet; prepares the data set on first use.

    Raises UserError: unknown name or split, `data_dir` is no folder, data set missing, damaged or in a format that only
    TensorFlow reads; a folder of pictures that cannot be used.
    """
    facts = info(source.name, source.folder)
    if split not in SPLITS:
        raise UserError(f"no split {split!r} of {source.name}, choose one of {', '.join(SPLITS)}")
    data_dir = preparation.check_data_dir(source.data_dir)
    prepared = image_folder.prepare(source.folder, data_dir) if source.folder else PREPARE[source.name](data_dir)
    return replace(_open(prepared, facts, split), origin=str(prepared.relative_to(data_dir)))


def _open(directory: Path, facts: DatasetInfo, split: str) -> Records:
    """The records of a prepared split; UserError, here or when they are read, if it is not whole."""
    again = REMAKE[facts.name](directory.parent.parent)
    with told_as_damage(directory, again):
        _check_features(directory)
        builder: Any = tfds.builder_from_directory(directory)
        _check_format(builder, directory)
        if facts.name == image_folder.NAME and split not in builder.info.splits:
            fix = "give two or more of a class, or ROOT/train and ROOT/test"
            raise UserError(f"data.root: it has no {split} pictures, as every class has one alone; {fix}")
        records: Any = builder.as_data_source(split)

    def read(indices: np.ndarray) -> Split:
        with told_as_damage(directory, again):
            examples = [parse(record) for record in records.data_source.__getitems__(indices.tolist())]
            pixels = b"".join(decode(png, facts.image_shape) for png, _ in examples)
        images = np.frombuffer(bytearray(pixels), np.uint8).reshape(len(indices), *facts.image_shape)
        return Split(images, np.array([label for _, label in examples], np.int32))

    def read_labels(indices: np.ndarray) -> np.ndarray:
        with told_as_damage(directory, again):
            found = records.data_source.__getitems__(indices.tolist())
            return np.array([label for _, label in map(parse, found)], np.int32)

    return Records(len(records), facts.image_shape, read, read_labels)


def parse(record: bytes) -> tuple[bytes, int]:
    """(PNG, label) of a record. TFDS's own way to them takes three times as long."""
    features = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


def decode(png: bytes, shape: tuple[int, int, int]) -> bytes:
    """The pixels of a PNG, row by row. Raises ValueError if they are of another shape (H, W, C) than promised."""
    H, W, C = shape
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    if image.size != (W, H) or len(image.getbands()) != C:
        raise ValueError(f"an image of {image.size} pixels, {image.mode}, where {W} x {H} x {C} was promised")
    return image.tobytes()


@contextmanager
def told_as_damage(path: Path, again: str) -> Iterator[None]:
    """Makes one line of whatever is raised within; `again` says what to run when the folder, or file, is deleted."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged data set raises whatever the layer that stumbles on it likes
        if is_the_machines(error):
            raise
        reason = " ".join(str(error).split())[:200]
        delete = f"delete it (`{shlex.join(['rm', '-r', str(path)])}`)"
        raise UserError(f"{path} is damaged ({reason}): {delete} and run {again}") from error


def _check_features(directory: Path) -> None:
    """Refuses features that are not TFDS's own: it imports the module that the file names, and runs it."""

    def only_tfds(values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("pythonClassName", "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise ValueError(f"features.json names the class {name}")
        return values

    json.loads((directory / "features.json").read_text(), object_hook=only_tfds)


def _check_format(builder: tfds.core.DatasetBuilder, directory: Path) -> None:
    """Raises UserError unless the records are array_record, the format that is read at random without TensorFlow."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{directory} holds {', '.join(sorted(formats))} files, which only TensorFlow reads: name another data_dir "
            "or delete that folder, and it is prepared as array_record"
        )
