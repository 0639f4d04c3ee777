"""The data sets: what they are (`info`, touches no disk) and all their images as one array (`load`).

TFDS prepares and stores (`shapes.py`, `cifar10.py`); sets of this size are decoded once, to uint8, and kept. The order
is that of the TFDS split, which is fixed. A new data set is an entry here beside a `prepare` of its own.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dit_jax.data import cifar10, preparation, shapes
from dit_jax.errors import UserError

SPLITS = ("train", "test")
CHUNK = 1000  # records read in one call: one by one takes longer than decoding them


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any of it is read. image_shape is (H, W, C)."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


class Split(NamedTuple):
    """All examples of one split, in its order: images uint8 [n, H, W, C] in 0..255, labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


DATASETS = {
    "shapes": DatasetInfo("shapes", (32, 32, 3), shapes.CLASS_NAMES),
    "cifar10": DatasetInfo("cifar10", (32, 32, 3), cifar10.CLASS_NAMES),
}
PREPARE: dict[str, Callable[[Path], Path]] = {"shapes": shapes.prepare, "cifar10": cifar10.prepare}
REMAKE: dict[str, Callable[[Path], str]] = {
    "shapes": lambda data_dir: "the same command again, which draws it",
    "cifar10": lambda data_dir: f"`{cifar10.command(data_dir)}`",
}


def info(name: str) -> DatasetInfo:
    """The facts about data set `name`. Raises UserError with the known names."""
    if name not in DATASETS:
        raise UserError(f"data.name: no data set {name!r}, choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def load(name: str, data_dir: str | Path, split: str = "train") -> Split:
    """All images and labels of a split ('train' or 'test'); prepares the data set under `data_dir` on first use.

    Raises UserError: unknown name or split, `data_dir` is no folder, data set missing, damaged or in a format that only
    TensorFlow reads.
    """
    facts = info(name)
    if split not in SPLITS:
        raise UserError(f"no split {split!r} of {name}, choose one of {', '.join(SPLITS)}")
    directory = PREPARE[name](preparation.check_data_dir(data_dir))
    return _read(directory, facts, split)


def _read(directory: Path, facts: DatasetInfo, split: str) -> Split:
    """Decodes a prepared split; UserError if it is not whole."""
    try:
        _check_features(directory)
        builder: Any = tfds.builder_from_directory(directory)
        _check_format(builder, directory)
        decoders = {"image": tfds.decode.SkipDecoding()}  # TFDS's own decoding is three times slower
        records = builder.as_data_source(split, decoders=decoders)
        images = np.empty((len(records), *facts.image_shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        for start in range(0, len(records), CHUNK):
            chunk = range(start, min(start + CHUNK, len(records)))
            for i, record in zip(chunk, records.__getitems__(chunk), strict=True):
                images[i] = np.asarray(Image.open(io.BytesIO(record["image"]), formats=["PNG"]))
                labels[i] = record["label"]
    except UserError:
        raise
    except Exception as error:  # a damaged data set raises whatever the layer that stumbles on it likes
        reason = " ".join(str(error).split())[:200]
        again = REMAKE[facts.name](directory.parent.parent)
        raise UserError(
            f"{directory} is damaged ({reason}): delete that folder (`rm -r {directory}`) and run {again}"
        ) from error
    return Split(images, labels)


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
