"""Reads a picture of any size and mode as a square of RGB pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
READABLE = sorted(set(FORMATS.values()))


def read_square(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """Returns (uint8 [size, size, 3], whether it was enlarged). Raises whatever PIL raises for a broken picture.

    The format is detected from the content, not the name. EXIF orientation is applied; of animations, the first frame
    is used.
    """
    check_sums(path)
    with Image.open(path, formats=READABLE) as picture:
        picture.load()
        upright = turned(picture)
        return np.asarray(resize(center_crop(to_rgb(upright)), size)), min(upright.size) < size


def check_sums(path: Path) -> None:
    """Raises whatever PIL raises if a PNG's checksums do not match its bytes, which decoding does not check."""
    with Image.open(path, formats=READABLE) as picture:
        picture.verify()  # checks nothing in other formats


def turned(picture: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; returns the picture unchanged if that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF can raise anything, but the picture itself is intact
        return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Converts any mode to RGB: transparent pixels are composited on white, and 16-bit grey becomes 8-bit."""
    if picture.mode.startswith("I"):  # PIL would clip values above 255
        grey = np.rint(np.asarray(picture, np.float64) / 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def center_crop(picture: Image.Image) -> Image.Image:
    """Crops to the largest central square; of an odd remainder, the larger half is cut off at the right or bottom."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def resize(picture: Image.Image, size: int) -> Image.Image:
    """Resizes with a bicubic filter (a = -1/2), whose support widens when the picture shrinks, to avoid aliasing."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)
