"""Opens and checks images made elsewhere: a folder of pictures, a single picture, or an NPZ file."""

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dit_jax.data.datasets import Records
from dit_jax.data.pictures import FORMATS, center_crop, check_sums, resize, turned
from dit_jax.errors import PASSING_ERRNO, UserError, errno_of

logger = logging.getLogger(__name__)
CHUNK = 1_000  # images in memory at a time


class BrokenPictureError(UserError):
    """A picture that cannot be decoded."""


@dataclass(frozen=True)
class Images:
    """`count` images with labels int [count] or None; `chunks()` yields them in order, uint8 [n, H, W, C], n varies."""

    count: int
    labels: np.ndarray | None
    chunks: Callable[[], Iterator[np.ndarray]]

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray | None) -> "Images":
        """Wraps arrays, uint8 [n, H, W, C] and int [n]."""
        chunks = lambda: (images[first : first + CHUNK] for first in range(0, len(images), CHUNK))  # noqa: E731
        return cls(len(images), labels, chunks)

    @classmethod
    def stored(cls, records: Records) -> "Images":
        """Wraps a data set's split: the labels are read now, the images when needed."""
        return cls(records.count, records.labels(), lambda: (part.images for part in records.chunks()))

    def hashed(self) -> tuple["Images", Callable[[], str]]:
        """Returns the same images, and a function that returns the SHA-256 of all that was read of them."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[np.ndarray]:
            for chunk in self.chunks():
                digest.update(chunk.tobytes())
                yield chunk

        return replace(self, chunks=chunks), digest.hexdigest


def open_images(
    path: Path,
    shape: tuple[int, int, int],
    num_classes: int,
    what: str = "--images",
    skip_broken: bool = False,
    fit: bool = False,
    most: int | None = None,
) -> Images:
    """Opens the images at `path`, which must have the shape (H, W, C); errors name `what`, the flag or key at fault.

    An NPZ file has `images` (or `arr_0`) uint8 [n, H, W, C] and, optionally, `labels` (or `arr_1`) int [n] in
    0..num_classes-1. The pictures of a folder, in the order of their names, are decoded only when needed, and broken
    ones raise then; with `skip_broken`, unreadable ones are logged and left out first. With `fit`, pictures of another
    size are cropped to the middle square and resized, like those of a training folder. `most` limits the pictures of a
    folder.

    Raises:
      UserError: one line that says what is wrong.
    """
    if path.is_dir():
        return from_folder(path, shape, what, skip_broken, fit, most)
    if path.suffix.lower() in FORMATS and path.is_file():
        return Images.of(decode(path, shape, what, fit)[None], None)
    if path.is_file():
        return from_npz(path, shape, num_classes, what)
    raise UserError(
        f"{what}={path}: there is no such file or folder; give a folder of pictures, a picture or an NPZ file"
    )


def read_mask(path: Path, height: int, width: int, what: str) -> np.ndarray:
    """Reads a picture as a mask: bool [H, W, 1], true where it is white (above 127), after a crop and resize to fit."""
    if path.suffix.lower() not in FORMATS or not path.is_file():
        raise UserError(f"{what}={path}: there is no such picture; give one that is white in the area to redraw")
    return decode(path, (height, width, 1), what, fit=True) > 127


def from_npz(path: Path, shape: tuple[int, int, int], num_classes: int, what: str) -> Images:
    """Reads the images and labels of an NPZ file."""
    if not zipfile.is_zipfile(path):
        kinds = ", ".join(FORMATS)
        raise UserError(
            f"{what}={path} cannot be read: it is neither a complete NPZ file nor named as a picture ({kinds})"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            pairs = (("images", "arr_0"), ("labels", "arr_1"))  # the second names are those in ADM's files
            images, labels = (next((file[name] for name in names if name in file), None) for names in pairs)
            if images is None:
                raise ValueError(f"it has no array `images`, only {', '.join(file.files) or 'nothing'}")
        if not all(isinstance(array, np.ndarray | None) for array in (images, labels)):
            raise ValueError("images or labels is not an array")  # NumPy returns bytes for other members
    except Exception as error:  # a damaged file can raise anything in zlib, the zip reader or the header parser
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what}={path} cannot be read ({reason}); give an NPZ file with `images` and, perhaps, `labels`"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4:
        wanted = "give uint8 [n, H, W, C] in 0..255"
        raise UserError(f"{what}={path}: its images are {images.dtype} {images.shape}; {wanted}")
    check_shape(images.shape[1:], shape, path, what)
    if not len(images):
        raise UserError(f"{what}={path}: it has no images; give at least one")
    if labels is not None:
        check_labels(labels, len(images), num_classes, path, what)
    return Images.of(images, labels)


def from_folder(
    path: Path,
    shape: tuple[int, int, int],
    what: str,
    skip_broken: bool = False,
    fit: bool = False,
    most: int | None = None,
) -> Images:
    """Opens the first `most` pictures of a folder, by default all of them, without its subfolders."""
    seen = (file for file in path.iterdir() if not file.name.startswith("."))  # Macs leave ._1.png beside 1.png
    files = sorted(file for file in seen if file.suffix.lower() in FORMATS)
    if not files:
        raise UserError(f"{what}={path}: it has no pictures ({', '.join(FORMATS)}); use another folder")
    if skip_broken:  # decodes every picture twice, as their number must be known before the first is used
        files = [file for file in files if is_whole(file, shape, what, fit)]
        if not files:
            raise UserError(f"{what}={path}: none of its pictures can be read; use another folder")
    files = files[:most]

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, len(files), CHUNK):
            yield np.stack([decode(file, shape, what, fit) for file in files[first : first + CHUNK]])

    return Images(len(files), None, chunks)


def is_whole(file: Path, shape: tuple[int, int, int], what: str, fit: bool) -> bool:
    """Returns whether a picture can be decoded; logs one that cannot. Raises UserError for one of another shape."""
    try:
        decode(file, shape, what, fit)
    except BrokenPictureError as error:
        logger.warning("%s: %s is skipped (%s)", what, file, error.__cause__)
        return False
    return True


def decode(file: Path, shape: tuple[int, int, int], what: str, fit: bool = False) -> np.ndarray:
    """Decodes one picture to uint8 [H, W, C]; with `fit`, one of another size becomes a square of H x H pixels.

    Raises UserError if it is broken (`BrokenPictureError`), is not a plain 8-bit picture, or has another shape.
    """
    try:
        if not file.is_file():
            raise OSError("it is not a file")  # Pillow would wait forever on a pipe
        check_sums(file)
        with Image.open(file, formats=[FORMATS[file.suffix.lower()]]) as picture:
            refusal = not_plain(picture)
            picture.load()  # here, because `turned` swallows errors
            upright = turned(picture).convert("RGB" if shape[2] == 3 else "L")
            if fit and upright.size != (shape[1], shape[0]):
                upright = resize(center_crop(upright), shape[0])
            pixels = np.asarray(upright).reshape(*upright.size[::-1], shape[2])
    except Exception as error:  # a broken picture can raise anything, depending on its decoder
        if errno_of(error) in PASSING_ERRNO:
            raise
        raise BrokenPictureError(f"{what}: {file} cannot be read ({error}); repair or remove it") from error
    if refusal:
        raise UserError(f"{what}: {file} {refusal}")
    check_shape(pixels.shape, shape, file, what)
    return pixels


def not_plain(picture: Image.Image) -> str:
    """Returns why a picture is more than one frame of opaque 8-bit pixels, with the fix; '' if it is not."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        return f"has {frames} frames; give a still picture"
    raw_modes = [str(tile.args) for tile in getattr(picture, "tile", [])]  # Pillow reads 16-bit colours as mode RGB
    if picture.mode.startswith(("I", "F")) or any(";16" in raw for raw in raw_modes):  # Pillow would truncate them
        return f"has more than 8 bits per channel (mode {picture.mode}); convert it to 8 bits"
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        return "is transparent in places; put it on a background"
    return ""


def check_shape(found: tuple[int, ...], shape: tuple[int, int, int], path: Path, what: str) -> None:
    """Refuses images whose shape is not the data set's: resizing them would affect their evaluation."""
    if tuple(found) != shape:
        raise UserError(
            f"{what}: {path} has images of {found}, but the data set has {shape}; give images of that shape"
        )


def check_labels(labels: np.ndarray, count: int, num_classes: int, path: Path, what: str) -> None:
    """Refuses labels that are not one class index per image."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{what}={path}: its labels are {labels.dtype} {labels.shape}; give integers, one per image")
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        span = f"{labels.min()}..{labels.max()}"
        raise UserError(f"{what}={path}: its labels are {span}; the data set's are 0..{num_classes - 1}")
