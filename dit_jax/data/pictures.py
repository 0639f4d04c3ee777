"""One picture of any size and mode as a square of RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
READABLE = sorted(set(FORMATS.values()))


def read_square(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """(uint8 [size, size, 3], whether it had to be enlarged). Raises whatever PIL raises for a broken picture.

    What the file holds decides how it is read, not its name. Turned as its EXIF says; of moving ones the first frame.
    """
    check_sums(path)
    with Image.open(path, formats=READABLE) as picture:
        picture.load()
        upright = turned(picture)
        return np.asarray(resize(center_crop(to_rgb(upright)), size)), min(upright.size) < size


def check_sums(path: Path) -> None:
    """Raises whatever PIL raises where a PNG's checksums are not those of its bytes, which decoding does not ask."""
    with Image.open(path, formats=READABLE) as picture:
        picture.verify()  # of other formats, nothing


def turned(picture: Image.Image) -> Image.Image:
    """Upright as EXIF's orientation says; as it is if that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # the picture itself is whole, and damaged EXIF raises many things
        return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent is laid on white, 16 bits of grey become 8."""
    if picture.mode.startswith("I"):  # PIL would cut off what is above 255
        grey = np.rint(np.asarray(picture, np.float64) / 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def center_crop(picture: Image.Image) -> Image.Image:
    """The largest square around the middle; of an odd remainder, the greater half is cut off right or below."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def resize(picture: Image.Image, size: int) -> Image.Image:
    """Bicubic (a = -1/2), its support widened where it shrinks, so that nothing aliases."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)
