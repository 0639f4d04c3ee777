"""Makes pictures for people: model output as bytes, labelled grids, PNG files."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dit_jax.system.files import replacing

COLUMNS = 10  # images of a class, unless the caller sets it
ROWS = 25  # classes below one another; more continue to the right, or a thousand classes would be a long ribbon
PADDING = 2  # pixels on each side of an image
MARGIN = 6  # pixels around the grid and between a name and its images
MIN_FONT, MAX_FONT = 12, 28  # pixels; smaller is illegible, larger too loud
MAX_NAME_EMS = 9  # greatest width of a name; longer ones end in an ellipsis
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
DIVERGED = 100.0  # a value beyond it means that sampling has diverged; images are in [-1, 1]
ABOUT = "dit-jax"  # key of the text in a PNG that says how it was made
MOST_PIXELS = 80_000_000  # of an enlarged picture; Pillow warns above 89 million and opens nothing above 179 million
# What Pillow raises for files that are broken or too large to open, and JSON for the texts in them.
BROKEN_PNG = (OSError, ValueError, TypeError, SyntaxError, RecursionError, Image.DecompressionBombError)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to 0..255, rounding to nearest; values outside are clipped, NaN becomes 0 (black).

    Args:
        x: Floats of any shape.

    Returns:
        uint8 of the same shape. Inverse of `x = pixels / 127.5 - 1` for every byte.
    """
    bytes_as_floats = np.round((np.clip(np.asarray(x, np.float32), -1, 1) + 1) * 127.5)
    return np.nan_to_num(bytes_as_floats, nan=0.0).astype(np.uint8)


def count_diverged(x: np.ndarray) -> int:
    """Returns how many of the images [n, ...] have a value beyond `DIVERGED` or a NaN."""
    within = np.abs(x) <= DIVERGED
    return int(np.count_nonzero(~within.all(axis=tuple(range(1, x.ndim)))))


def label_grid(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], columns: int | None = None, scale: int = 2
) -> np.ndarray:
    """Draws images in rows by class, the class name at the left; classes without an image have no row.

    Args:
        images: uint8 [n, H, W, C], C = 1 or 3, n >= 1.
        labels: int [n] in [0, len(class_names)).
        class_names: The name of each class.
        columns: At most this many images of a class are drawn, the first ones; 10 if None.
        scale: Integer factor by which images are enlarged; less if the picture would be too large.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: images or labels are not as above.
    """
    _check(images, labels, class_names)
    classes, counts = np.unique(labels, return_counts=True)
    scale = fitting(len(classes) * min(counts.max(), columns or COLUMNS), images.shape[1:3], scale)
    groups = [(class_names[int(k)], images[labels == k][: columns or COLUMNS]) for k in classes]
    row_height = max(images.shape[1] * scale + 2 * PADDING, MIN_FONT + 2)
    cell_width = images.shape[2] * scale + 2 * PADDING
    font = font_of(to_font_size(row_height))
    names = [_fit(name, font) for name, _ in groups]

    name_width = round(max(font.getlength(name) for name in names)) + MARGIN
    block_width = name_width + cell_width * max(len(group) for _, group in groups) + MARGIN
    blocks, rows = -(-len(groups) // ROWS), min(len(groups), ROWS)
    canvas = Image.new("RGB", (MARGIN + blocks * block_width, 2 * MARGIN + rows * row_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (name, (_, group)) in enumerate(zip(names, groups, strict=True)):
        block, row = divmod(i, ROWS)
        left, middle = MARGIN + block * block_width + name_width, MARGIN + row * row_height + row_height // 2
        draw.text((left - MARGIN, middle), name, fill=INK, font=font, anchor="rm")
        for j, image in enumerate(group):
            picture = tile(image, scale)
            canvas.paste(picture, (left + j * cell_width + PADDING, middle - picture.height // 2))
    return np.asarray(canvas)


def save_png(path: Path, array: np.ndarray, about: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 [H, W, 3], [H, W, 1] or [H, W] as a PNG, atomically; creates missing folders.

    `about` is stored in the file, as JSON in the text `dit-jax`, and read by `about_png`.
    """
    text = PngInfo()
    if about is not None:
        text.add_text(ABOUT, json.dumps(about))
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    with replacing(path) as temporary:
        image.save(temporary, "PNG", pnginfo=text)


def about_png(path: Path) -> dict[str, Any]:
    """Returns what `save_png` stored about the picture; {} if that cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            about = json.loads(image.info.get(ABOUT, "{}"))
    except BROKEN_PNG:
        return {}
    return about if isinstance(about, dict) else {}


def _check(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 [n, H, W, C], n >= 1, C = 1 or 3")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape} for {len(images)} images; expected one per image")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"labels are {labels.min()}..{labels.max()}; there are {len(class_names)} class names")


def fitting(cells: int, shape: tuple[int, int], scale: int) -> int:
    """Returns the greatest factor up to `scale` that keeps `cells` images of (H, W) within MOST_PIXELS, at least 1."""
    each = lambda factor: (shape[0] * factor + 2 * PADDING) * (shape[1] * factor + 2 * PADDING)  # noqa: E731
    return next((factor for factor in range(scale, 1, -1) if cells * each(factor) <= MOST_PIXELS), 1)


def to_font_size(row_height: int) -> int:
    """Returns the font size, in pixels, of the words beside a row of images."""
    return min(max(row_height // 4, MIN_FONT), MAX_FONT)


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns matplotlib's DejaVu Sans, with accents, Greek and Cyrillic; else Pillow's own font, with ASCII only."""
    found = importlib.util.find_spec("matplotlib")
    try:
        folder = Path(found.origin).parent if found and found.origin else Path()
        return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size=size)


def _fit(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns the name, shortened with an ellipsis if it is wider than MAX_NAME_EMS."""
    widest = MAX_NAME_EMS * font.getlength("M")
    if font.getlength(name) <= widest:
        return name
    while name and font.getlength(name + "…") > widest:
        name = name[:-1]
    return name.rstrip(" ,") + "…"


def tile(image: np.ndarray, scale: int) -> Image.Image:
    """Returns one image [H, W, C] in RGB, each pixel a square of side `scale`: enlarging must not smooth it."""
    height, width, _ = image.shape
    picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)).copy())
    return picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
