"""Prepares `image_folder`: a user's pictures, root/CLASS/PICTURE, cropped, resized and stored by TFDS in array_record.

The copy is made once, in DATA_DIR/image_folder/CONTENT/VERSION, where CONTENT is the image size and a hash of the
root's content. A root that changed gets another copy; one that is gone is not needed while its copy exists.
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
VERSION = "1.0.0"  # of how pictures become images; a new version makes new copies
AT_ONCE = 256  # pictures decoded in parallel before they are written


@dataclass(frozen=True)
class Folder:
    """A root and what it becomes: square images with sides of `image_size` pixels; labels index `class_names`.

    `content` names the copy that a run has used, or is "" if it has used none yet.
    """

    root: str
    image_size: int
    class_names: tuple[str, ...]
    skip_broken: bool = False
    content: str = ""


def directory_of(folder: Folder, data_dir: Path) -> Path:
    """Returns the directory of the copy."""
    return data_dir / NAME / folder.content / VERSION


def look(folder: Folder) -> tuple[folders.Listing, Folder]:
    """Returns the listing of the root as it is now, and `folder` with that content.

    Raises UserError if the root cannot be used, or if its classes are not `folder.class_names`, in alphabetical order.
    """
    listing = folders.scan(folder.root)
    gone = sorted(set(folder.class_names) - set(listing.class_names))
    new = sorted(set(listing.class_names) - set(folder.class_names))
    if gone or new:
        changes = [f"{word} {', '.join(names[:5])}" for word, names in (("lacks", gone), ("adds", new)) if names]
        fix = "restore the class folders, or use another workdir"
        raise UserError(f"data.root={folder.root} has other classes than the run: it {' and '.join(changes)}; {fix}")
    if folder.class_names != listing.class_names:  # their order matters: a label is an index into it
        place = next(i for i, name in enumerate(folder.class_names) if name not in listing.class_names[i : i + 1])
        fix = "use another workdir" if folder.content else "omit it"
        raise UserError(f"data.class_names repeats classes of {folder.root}, or is not in alphabetical order: "
                        f"'{folder.class_names[place]}', number {place + 1}; {fix}")  # fmt: skip
    exact = f"{VERSION} {folder.image_size} {folder.skip_broken} {listing.content()}"
    content = f"{folder.image_size}px-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"
    return listing, replace(folder, content=content)


def refresh(folder: Folder, data_dir: Path) -> Folder:
    """Returns the folder with its present content, or unchanged if the root is gone but its copy exists.

    It logs either that the root is gone or a warning that the content has changed.
    """
    directory = directory_of(folder, data_dir)
    kept = folder.content and preparation.is_prepared(directory)
    if kept and not expanded(folder.root).is_dir():
        logger.info("data.root=%s is missing, so its copy %s is used", folder.root, directory)
        return folder
    _, now = look(folder)
    if folder.content not in ("", now.content):
        logger.warning("data.root=%s has changed since this run read it; from here on this is another run", folder.root)
    return now


def prepare(folder: Folder, data_dir: Path) -> Path:
    """Makes the copy unless it exists, and returns its directory.

    Raises UserError if the root cannot be used, or if a picture is broken and `skip_broken` is false.
    """
    directory = directory_of(folder, data_dir)
    if folder.content and preparation.is_prepared(directory):
        return directory
    listing, now = look(folder)
    directory = directory_of(now, data_dir)
    if folder.content not in ("", now.content):
        logger.warning("data.root=%s has changed since this run read it; it is used as it is now", folder.root)
    return preparation.once(directory, data_dir / NAME, lambda: make(now, listing, data_dir))


def make(folder: Folder, listing: folders.Listing, data_dir: Path) -> None:
    """Reads every picture, showing progress, and writes the whole copy or nothing."""
    for line in listing.unused:
        logger.warning("data.root: %s", line)
    listed = sum(map(len, listing.splits.values()))
    tfds.disable_progress_bar()
    with Progress(listed, "picture", start="reading") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # they are about oddities in single files
        builder = ImageFolder(folder, listing, progress.update, data_dir=data_dir, file_format="array_record")
        preparation.write(builder)
    size, held = folder.image_size, " (held out)" if listing.held_out else ""
    kept = {split: found.num_examples for split, found in builder.info.splits.items()}
    told = (len(listing.class_names), kept["train"], kept.get("test", 0), held, size, size)
    logger.info("classes: %d; pictures: %d for training, %d for testing%s, stored as images of %d x %d pixels", *told)
    if builder.enlarged:
        logger.warning("smaller than %d pixels, so enlarged: %d of the pictures", size, builder.enlarged)
    if builder.broken:
        what = f"broken pictures skipped ({len(builder.broken)}): {', '.join(builder.broken[:5])}"
        logger.warning("%s", what + (" ..." if len(builder.broken) > 5 else ""))


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; records {image: PNG, label}."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, folder: Folder, listing: folders.Listing, told: Callable[[int], None], **kwargs):
        """Takes `told(done)`, which is called after each picture with the number done."""
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
            raise UserError(f"data.root: every picture of the class {lost} is broken; add others")
        if not whole:
            raise UserError(f"data.root: every {split} picture is broken; add others")

    def _encode(self, picture: folders.Picture) -> tuple[bytes | None, bool]:
        """Returns (PNG, or None for a broken picture to skip; whether it was enlarged). It is thread-safe.

        Raises UserError if the picture is broken and `skip_broken` is false.
        """
        path = expanded(self._folder.root) / picture.path
        try:
            image, enlarged = pictures.read_square(path, self._folder.image_size)
        except Exception as error:  # a broken picture can raise anything, depending on its decoder
            if errno_of(error) in PASSING_ERRNO:  # a passing failure must not leave the picture out for good
                raise
            if self._folder.skip_broken:
                return None, False
            reason = " ".join(str(error).split())[:200]
            fix = "repair or remove it, or skip such pictures with --config.data.skip_broken=true"
            raise UserError(f"data.root: {path} cannot be read ({reason}); {fix}") from None
        return preparation.png(np.asarray(image)), enlarged
