"""Draws the denoising: a strip of moments, and an animation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dit_jax.reporting.images import (
    BACKGROUND,
    INK,
    MARGIN,
    MOST_PIXELS,
    PADDING,
    fitting,
    font_of,
    tile,
    to_font_size,
)
from dit_jax.system.files import replacing

MOMENTS = 48  # of an animation, at most
COLUMNS = 8  # moments on each side of a row of the strip
FRAME_MS, LAST_MS = 80, 1500


def spread(count: int, most: int) -> np.ndarray:
    """Returns at most `most` rising integers, evenly spaced from 0 to count - 1."""
    return np.unique(np.round(np.linspace(0, count - 1, min(most, count))).astype(int))


def spread_log(t: np.ndarray, most: int) -> np.ndarray:
    """Returns positions in the falling timesteps t, at most `most` and evenly spaced in log(t + 1), with both ends."""
    targets = np.linspace(np.log(t[0] + 1), np.log(t[-1] + 1), min(most, len(t)))
    return np.unique(np.abs(np.log(t + 1)[:, None] - targets[None]).argmin(0))


def frames_of(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of a sampler to show: all, or at most MOMENTS evenly spaced and MOMENTS denser at the end."""
    if len(rows) <= 2 * MOMENTS:
        return rows
    late = len(rows) - np.unique(np.round(np.geomspace(1, len(rows), MOMENTS)).astype(int))
    return rows[np.union1d(spread(len(rows), MOMENTS), late)]


def strip(x_t: np.ndarray, x_0: np.ndarray, t: Sequence[int], names: Sequence[str], scale: int = 2) -> np.ndarray:
    """Draws a row per image, x_t left and the predicted x_0 right; evenly in t above, evenly in log(t + 1) below.

    Args:
        x_t: uint8 [B, F, H, W, C]; the last moment is the image.
        x_0: The same.
        t: The timestep of each moment, falling; the last one is not used.
        names: The name beside each row.
        scale: Integer factor by which images are enlarged; less if the picture would be too large.

    Returns:
        uint8 [height, width, 3].
    """
    scale = fitting(2 * 2 * COLUMNS * len(names), x_t.shape[2:4], scale)
    moments = np.asarray(t[:-1])
    last = len(moments)
    even = np.unique([np.abs(moments - goal).argmin() for goal in np.linspace(moments[0], moments[-1], COLUMNS - 1)])
    blocks = [(title, [*chosen, last]) for title, chosen in
              (("even", even), ("log-spaced", spread_log(moments, COLUMNS - 1)))]  # fmt: skip
    return np.concatenate([_block(title, chosen, x_t, x_0, t, names, scale) for title, chosen in blocks])


def _block(
    title: str,
    chosen: Sequence[int],
    x_t: np.ndarray,
    x_0: np.ndarray,
    t: Sequence[int],
    names: Sequence[str],
    scale: int,
) -> np.ndarray:
    """Draws one table of the strip; each side is always as wide as COLUMNS moments."""
    height, width = x_t.shape[2] * scale + 2 * PADDING, x_t.shape[3] * scale + 2 * PADDING
    font = font_of(to_font_size(height))
    line = round(1.5 * to_font_size(height))
    left = round(max(font.getlength(name) for name in names)) + 2 * MARGIN
    half = COLUMNS * width + 2 * MARGIN
    canvas = Image.new("RGB", (left + 2 * half, 2 * line + len(names) * height + 2 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for side, (what, images) in enumerate(((f"x_t, {title} times", x_t), ("predicted x_0", x_0))):
        begin = left + side * half
        draw.text((begin, MARGIN + line // 2), what, fill=INK, font=font, anchor="lm")
        for column, moment in enumerate(chosen):
            x = begin + column * width
            word = "image" if moment == len(t) - 1 else f"t={t[moment]}"
            draw.text((x + width // 2, MARGIN + line + line // 2), word, fill=INK, font=font, anchor="mm")
            for row in range(len(names)):
                canvas.paste(tile(images[row, moment], scale), (x + PADDING, MARGIN + 2 * line + row * height))
    for row, name in enumerate(names):
        middle = MARGIN + 2 * line + row * height + height // 2
        draw.text((left - MARGIN, middle), name, fill=INK, font=font, anchor="rm")
    return np.asarray(canvas)


def animation(x_t: np.ndarray, x_0: np.ndarray, scale: int = 2) -> list[np.ndarray]:
    """Returns frames, uint8 [height, width, 3]: x_t in the upper row, the predicted x_0 in the lower one.

    Images are enlarged by `scale`. If the frames together would be too large, they are fewer or enlarged less.
    """
    frame = 2 * len(x_t) * x_t.shape[2] * x_t.shape[3]
    chosen = spread(x_t.shape[1], min(MOMENTS, max(2, MOST_PIXELS // frame)))
    scale = fitting(2 * len(x_t) * len(chosen), x_t.shape[2:4], scale)
    return [np.concatenate([_side_by_side(x[:, moment], scale) for x in (x_t, x_0)]) for moment in chosen]


def _side_by_side(images: np.ndarray, scale: int) -> np.ndarray:
    return np.concatenate([np.asarray(tile(image, scale)) for image in images], axis=1)


def save_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes an animation that loops and pauses on its last frame."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    durations = [FRAME_MS] * len(rest) + [LAST_MS]
    with replacing(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
