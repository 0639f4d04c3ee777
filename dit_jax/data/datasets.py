"""The data sets: their facts (`info`, which does not touch the disk) and their splits, read in parts or whole.

TFDS prepares and stores them (`shapes.py`, `cifar10.py`, `image_folder.py`). Examples have the fixed order of the TFDS
split. To add a data set, write its `prepare` and add an entry to the tables here.
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
from dit_jax.system.files import expanded

SPLITS = ("train", "test")
PROBED = 64  # examples in the fingerprint of a split
CHUNK = 1000  # records read per call; reading them one by one takes longer than decoding them


class NoSplitError(UserError):
    """A folder of pictures has too few for a test split."""


@dataclass(frozen=True)
class Source:
    """The name of a data set and where TFDS keeps it; `folder` is the source of an `image_folder`."""

    name: str
    data_dir: str | Path
    folder: image_folder.Folder | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set that are known before it is read. image_shape is (H, W, C)."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class Split(NamedTuple):
    """Some or all examples of a split: images uint8 [n, H, W, C] in 0..255, labels int32 [n].

    Of latents, `images` is float32 [n, h, w, c], or [n, 2, h, w, c] with those of the mirrored image (data/latents.py).
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Records:
    """`count` examples in a fixed order; `read(indices)` returns some of them, decoded, and is thread-safe.

    `image_shape` and `dtype` describe one entry of `Split.images`. `read_labels(indices)` returns labels, int32 [n],
    without decoding images. `origin` names the prepared data: data set, version and, for a folder of pictures, content.
    """

    count: int
    image_shape: tuple[int, ...]
    read: Callable[[np.ndarray], Split]
    read_labels: Callable[[np.ndarray], np.ndarray]
    dtype: type[np.generic] = np.uint8
    origin: str = ""

    @property
    def nbytes(self) -> int:
        """The size of all decoded images in bytes."""
        return self.count * math.prod(self.image_shape) * self.dtype().itemsize

    def chunks(self) -> Iterator[Split]:
        """Yields all examples in order, up to CHUNK at a time."""
        for indices in self._parts():
            yield self.read(indices)

    def labels(self) -> np.ndarray:
        """Returns all labels, int32 [count]."""
        return np.concatenate([self.read_labels(indices) for indices in self._parts()])

    def probe(self) -> list[Any]:
        """Returns a JSON-ready fingerprint of the split without reading all of it: its count and some examples."""
        some = self.read(np.unique(np.linspace(0, self.count - 1, PROBED).astype(int)))
        return [self.count, zlib.crc32(some.images.tobytes()), some.labels.tolist()]

    def first(self, count: int) -> "Records":
        """Returns the records of the first `count` examples, or of all if there are fewer."""
        return replace(self, count=min(count, self.count))

    def load(self, wanted: Callable[[], bool] = lambda: True) -> Split:
        """Reads all examples. It stops early once `wanted()`, called after each chunk, is false.

        The examples after that are left uninitialised.
        """
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
REMAKE: dict[str, Callable[[Path], str]] = {  # how to make a data set that is damaged again
    "shapes": lambda data_dir: "the same command again, which draws it",
    "cifar10": lambda data_dir: f"`{cifar10.command(data_dir)}`",
    image_folder.NAME: lambda data_dir: "the same command again, which reads the pictures as they are now",
}


def info(name: str, folder: image_folder.Folder | None = None) -> DatasetInfo:
    """Returns the facts about data set `name`. Raises UserError for an unknown one, listing the known names."""
    if name == image_folder.NAME and folder:
        return DatasetInfo(name, (folder.image_size, folder.image_size, 3), folder.class_names)
    if name not in DATASETS:
        raise UserError(f"data.name={name} is not known; choose one of {', '.join((*DATASETS, image_folder.NAME))}")
    return DATASETS[name]


def refresh(source: Source) -> Source:
    """Returns the source with its folder's present content (`image_folder.refresh`), or unchanged without a folder."""
    if source.folder is None:
        return source
    return replace(source, folder=image_folder.refresh(source.folder, preparation.check_data_dir(source.data_dir)))


def open_split(source: Source, split: str = "train") -> Records:
    """Opens a split ('train' or 'test') without reading it; prepares the data set on first use.

    Raises UserError if the name or split is unknown, `data_dir` is not a folder, the data set is missing, damaged or in
    a format that only TensorFlow reads, or a folder of pictures cannot be used; NoSplitError if it is too small for a
    test split.
    """
    facts = info(source.name, source.folder)
    if split not in SPLITS:
        raise UserError(f"no split {split!r} of {source.name}; choose one of {', '.join(SPLITS)}")
    data_dir = preparation.check_data_dir(source.data_dir)
    prepared = image_folder.prepare(source.folder, data_dir) if source.folder else PREPARE[source.name](data_dir)
    fix = delete_and(prepared, REMAKE[source.name](data_dir))
    if source.folder and not expanded(source.folder.root).is_dir():
        fix = f"it is the only copy, as data.root={source.folder.root} is missing: restore one of the two"
    return replace(_open(prepared, facts, split, fix), origin=str(prepared.relative_to(data_dir)))


def _open(directory: Path, facts: DatasetInfo, split: str, fix: str) -> Records:
    """Returns the records of a prepared split. Raises UserError, here or on reading them, if it is damaged."""
    with told_as_damage(directory, fix):
        _check_features(directory)
        builder: Any = tfds.builder_from_directory(directory)
        _check_format(builder, directory)
        if facts.name == image_folder.NAME and split not in builder.info.splits:
            more = "put two or more into a class, or use ROOT/train and ROOT/test"
            raise NoSplitError(f"data.root: it has no {split} pictures, as every class has only one; {more}")
        records: Any = builder.as_data_source(split)

    def read(indices: np.ndarray) -> Split:
        with told_as_damage(directory, fix):
            examples = [parse(record) for record in records.data_source.__getitems__(indices.tolist())]
            pixels = b"".join(decode(png, facts.image_shape) for png, _ in examples)
        images = np.frombuffer(bytearray(pixels), np.uint8).reshape(len(indices), *facts.image_shape)
        return Split(images, np.array([label for _, label in examples], np.int32))

    def read_labels(indices: np.ndarray) -> np.ndarray:
        with told_as_damage(directory, fix):
            found = records.data_source.__getitems__(indices.tolist())
            return np.array([label for _, label in map(parse, found)], np.int32)

    return Records(len(records), facts.image_shape, read, read_labels)


def parse(record: bytes) -> tuple[bytes, int]:
    """Returns (PNG, label) of a record, three times as fast as TFDS's own parser."""
    features = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


def decode(png: bytes, shape: tuple[int, int, int]) -> bytes:
    """Returns the pixels of a PNG, row by row. Raises ValueError if its shape is not the promised (H, W, C)."""
    H, W, C = shape
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    if image.size != (W, H) or len(image.getbands()) != C:
        raise ValueError(f"an image of {image.size} pixels, {image.mode}; expected {W} x {H} x {C}")
    return image.tobytes()


def delete_and(path: Path, again: str) -> str:
    """Returns the advice to delete a damaged `path` and to run `again`."""
    return f"delete it (`{shlex.join(['rm', '-r', str(path)])}`) and run {again}"


@contextmanager
def told_as_damage(path: Path, fix: str) -> Iterator[None]:
    """Turns errors raised within into a one-line UserError that says that `path` is damaged, and what to do.

    UserErrors, and the errors of a machine that cannot read files, pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged data set can raise anything, depending on the layer that finds it
        if is_the_machines(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): {fix}") from error


def _check_features(directory: Path) -> None:
    """Refuses features other than TFDS's own, since TFDS would import and run the module that the file names."""

    def only_tfds(values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("pythonClassName", "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise ValueError(f"features.json names the class {name}")
        return values

    json.loads((directory / "features.json").read_text(), object_hook=only_tfds)


def _check_format(builder: tfds.core.DatasetBuilder, directory: Path) -> None:
    """Raises UserError unless the records are array_record, which has random access without TensorFlow."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{directory} holds {', '.join(sorted(formats))} files, which only TensorFlow reads: use another data_dir, "
            "or delete that folder so that it is prepared as array_record"
        )
