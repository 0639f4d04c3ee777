"""`image_folder`: a user's own pictures, root/CLASS/PICTURE, cropped, resized and kept by TFDS as PNG in array_record.

The copy is made once, in DATA_DIR/image_folder/CONTENT/VERSION, where CONTENT names the size of its images and a hash
of what was in the root. A root that changed gets another copy; one that is gone is not missed while its copy is there.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dit_jax.data import folders, pictures, preparation
from dit_jax.errors import PASSING_ERRNO, UserError, errno_of
from dit_jax.system import environment
from dit_jax.system.files import expanded
from dit_jax.system.progress import Progress

logger = logging.getLogger(__name__)
NAME = "image_folder"
VERSION = "1.0.0"  # of how pictures become images: another one makes other copies
AT_ONCE = 256  # pictures that are decoded side by side before they are written


@dataclass(frozen=True)
class Folder:
    """A root and what is made of it: square images of `image_size` pixels of the classes `class_names`, in that order.

    `content` names the copy that a run has used; "" where none was yet.
    """

    root: str
    image_size: int
    class_names: tuple[str, ...]
    skip_broken: bool = False
    content: str = ""


def directory_of(folder: Folder, data_dir: Path) -> Path:
    """Where the copy lies."""
    return data_dir / NAME / folder.content / VERSION


def look(folder: Folder) -> tuple[folders.Listing, Folder]:
    """What is in the root now, and the folder with its present content.

    Raises UserError: the root cannot be used, or has other classes than the folder.
    """
    listing = folders.scan(folder.root)
    gone = sorted(set(folder.class_names) - set(listing.class_names))
    new = sorted(set(listing.class_names) - set(folder.class_names))
    if gone or new:
        changes = [f"{word} {', '.join(names[:5])}" for word, names in (("without", gone), ("with", new)) if names]
        fix = "restore the class folders, or use another workdir"
        raise UserError(f"data.root={folder.root} has other classes than the run: {' and '.join(changes)}; {fix}")
    if folder.class_names != listing.class_names:  # a label is a folder's place among them
        place = next(i for i, name in enumerate(folder.class_names) if name not in listing.class_names[i : i + 1])
        fix = "use another workdir" if folder.content else "omit it"
        raise UserError(f"data.class_names has classes of {folder.root} twice, or not in alphabetical order: "
                        f"'{folder.class_names[place]}', number {place + 1}; {fix}")  # fmt: skip
    exact = f"{VERSION} {folder.image_size} {folder.skip_broken} {listing.content()}"
    content = f"{folder.image_size}px-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"
    return listing, replace(folder, content=content)


def refresh(folder: Folder, data_dir: Path) -> Folder:
    """The folder with the content it has now; where the root is gone, as it was. Says so if it is not what it was."""
    directory = directory_of(folder, data_dir)
    kept = folder.content and preparation.is_prepared(directory)
    if kept and not expanded(folder.root).is_dir():
        logger.info("data.root=%s is not there, but its copy %s is", folder.root, directory)
        return folder
    _, now = look(folder)
    if folder.content not in ("", now.content):
        logger.warning("data.root=%s is not as the run has seen it; from here on this is another run", folder.root)
    return now


def prepare(folder: Folder, data_dir: Path) -> Path:
    """Makes the copy unless it is there, and returns its directory.

    Raises UserError: the root cannot be used, or a picture is broken.
    """
    directory = directory_of(folder, data_dir)
    if folder.content and preparation.is_prepared(directory):
        return directory
    listing, now = look(folder)
    directory = directory_of(now, data_dir)
    if folder.content not in ("", now.content):
        logger.warning("data.root=%s is not as the run has seen it; it is used as it is now", folder.root)
    if not preparation.is_prepared(directory):
        with preparation.only_one(data_dir / NAME, "*/*incomplete*"):
            if not preparation.is_prepared(directory):  # another process may have made it meanwhile
                make(now, listing, data_dir)
    return directory


def make(folder: Folder, listing: folders.Listing, data_dir: Path) -> None:
    """Reads every picture and writes the copy, with a line of progress; whole or not at all."""
    listed = sum(map(len, listing.splits.values()))
    tfds.disable_progress_bar()
    with Progress(listed, "picture", start="reading") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # about oddities of single files
        builder = ImageFolder(folder, listing, progress.update, data_dir=data_dir, file_format="array_record")
        preparation.prepare(builder)
    size, held = folder.image_size, " (held out of them)" if listing.held_out else ""
    kept = {split: found.num_examples for split, found in builder.info.splits.items()}
    told = (len(listing.class_names), kept["train"], kept.get("test", 0), held, size, size)
    logger.info("classes: %d; pictures: %d for training, %d for tests%s, now images of %d x %d pixels", *told)
    if builder.enlarged:
        logger.warning("%d pictures are smaller than %d pixels, and were enlarged", builder.enlarged, size)
    if builder.broken:
        what = f"{len(builder.broken)} broken pictures are left out: {', '.join(builder.broken[:5])}"
        logger.warning("%s", what + (" ..." if len(builder.broken) > 5 else ""))


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; records {image: PNG, label}."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, folder: Folder, listing: folders.Listing, told: Callable[[int], None], **kwargs):
        """`told(done)` hears of progress."""
        self._folder, self._listing, self._told = folder, listing, told
        self._done, self.enlarged, self.broken = 0, 0, []
        super().__init__(config=tfds.core.BuilderConfig(name=folder.content, version=VERSION), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._folder.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures of a folder, cropped to squares and resized.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "label": tfds.features.ClassLabel(names=list(self._folder.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split, found in self._listing.splits.items() if found}

    def _generate_examples(self, split):
        found, whole = self._listing.splits[split], set()
        with ThreadPoolExecutor(environment.cores()) as pool:
            for first in range(0, len(found), AT_ONCE):
                some = found[first : first + AT_ONCE]
                for picture, (image, enlarged) in zip(some, pool.map(self._encode, some), strict=True):
                    self._done += 1
                    self._told(self._done)
                    self.enlarged += enlarged
                    if image is None:
                        self.broken.append(picture.path)
                    else:
                        whole.add(picture.label)
                        yield os.fsencode(picture.path), {"image": image, "label": picture.label}
        if split == "train" and len(whole) < len(self._folder.class_names):
            lost = next(name for i, name in enumerate(self._folder.class_names) if i not in whole)
            raise UserError(f"data.root: every picture of the class {lost} is broken; put others there")
        if not whole:
            raise UserError(f"data.root: every {split} picture is broken; put others there")

    def _encode(self, picture: folders.Picture) -> tuple[bytes | None, bool]:
        """(PNG, or None for a broken one that is left out; whether it was enlarged), in any thread.

        Raises UserError: it is broken, and such are not left out.
        """
        path = expanded(self._folder.root) / picture.path
        try:
            image, enlarged = pictures.read_square(path, self._folder.image_size)
        except Exception as error:  # a broken picture raises whatever the decoder that stumbles on it likes
            if errno_of(error) in PASSING_ERRNO:  # the copy would lack it for ever
                raise
            if self._folder.skip_broken:
                return None, False
            reason = " ".join(str(error).split())[:200]
            fix = "mend or remove it, or leave such pictures out by --config.data.skip_broken=true"
            raise UserError(f"data.root: {path} cannot be read ({reason}); {fix}") from None
        return preparation.png(np.asarray(image)), enlarged
