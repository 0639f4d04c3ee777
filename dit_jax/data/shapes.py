"""Draws `shapes`: 32 x 32 images of ten classes of coloured figures, learnt in minutes without a download.

The classes are five figures in two colours. Position, size, angle, shade and background are random for every image;
edges are antialiased. Image i of a split is a function of (split, i) alone, and uses only operations that IEEE 754
rounds the same everywhere (+ - * / and sqrt; no sin, cos or long sums), so its bytes are the same on every machine.

Axis letters: H, W image; E edges of a figure; the last axis of a colour is RGB.
"""

import math
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dit_jax.data import preparation

FIGURES = ("circle", "square", "triangle", "star", "ring")
COLORS = {  # two opposite corners of a box in RGB
    "red": np.array([(175.0, 0.0, 0.0), (255.0, 60.0, 60.0)]),
    "blue": np.array([(0.0, 50.0, 170.0), (70.0, 120.0, 255.0)]),
}
CLASS_NAMES = tuple(f"{color} {figure}" for color in COLORS for figure in FIGURES)
BACKGROUNDS = {
    "dark": np.array([(10.0, 10.0, 10.0), (65.0, 65.0, 65.0)]),
    "light": np.array([(195.0, 195.0, 195.0), (255.0, 255.0, 255.0)]),
}

SIZE = 32  # pixels, both ways
RADIUS = (10.0, 14.0)  # pixels from the centre of a figure to its farthest point
TILT = 1 / 6  # tangent of half the largest angle of rotation
RING_HOLE = 0.55  # radius of the hole, in radii of the ring
NUM_EXAMPLES = {"train": 20_000, "test": 2_000}
VERSION = "1.0.0"


def _directions(count: int, start: float) -> np.ndarray:
    """Returns unit vectors at equal angles from `start` turns on (0 right, 1/4 down), float64 [count, 2] (x, y).

    They are rounded, because the last bit of sin and cos differs between C libraries.
    """
    angles = [2 * math.pi * (start + k / count) for k in range(count)]
    return np.array([(round(math.cos(a), 12), round(math.sin(a), 12)) for a in angles])


# For each figure with straight edges: the normals of its edges, their distance from the centre (in radii), and how many
# of them a point inside may be beyond. A star is the set of points within at least four of a pentagram's five lines.
POLYGONS = {
    "square": (_directions(4, 0), math.sqrt(0.5), 0),
    "triangle": (_directions(3, 1 / 4), 0.5, 0),
    "star": (_directions(5, 3 / 4), (math.sqrt(5) - 1) / 4, 1),
}


def draw(rng: np.random.Generator, label: int) -> np.ndarray:
    """Draws one image of class `label` (an index into CLASS_NAMES), uint8 [H, W, 3]."""
    figure, color = FIGURES[label % len(FIGURES)], list(COLORS)[label // len(FIGURES)]
    background_RGB = _color(rng, BACKGROUNDS["light" if rng.random() < 0.5 else "dark"])
    fill_RGB = _color(rng, COLORS[color])
    radius = rng.uniform(*RADIUS)
    center = radius + (SIZE - 2 * radius) * rng.random(2)
    inside_HW1 = coverage(figure, center, radius, _angle(rng))[..., None]
    return np.rint(background_RGB + inside_HW1 * (fill_RGB - background_RGB)).astype(np.uint8)


def coverage(figure: str, center: np.ndarray, radius: float, angle: tuple[float, float]) -> np.ndarray:
    """Returns the share of each pixel that the figure covers, float64 [H, W] in [0, 1].

    `center` (x, y) and `radius` are in pixels; `angle` is (cos, sin) of the rotation. The share is 1/2 minus the signed
    distance of the pixel's centre to the outline, clipped to [0, 1], which is exact for edges along the pixel grid.
    """
    x_1W = np.arange(0.5, SIZE)[None, :] - center[0]
    y_H1 = np.arange(0.5, SIZE)[:, None] - center[1]
    if figure in POLYGONS:
        distance_HW = _polygon_distance(x_1W, y_H1, figure, radius, angle)
    else:
        from_center_HW = np.sqrt(x_1W * x_1W + y_H1 * y_H1)
        distance_HW = from_center_HW - radius
        if figure == "ring":
            distance_HW = np.maximum(distance_HW, RING_HOLE * radius - from_center_HW)
    return np.minimum(np.maximum(0.5 - distance_HW, 0.0), 1.0)


def _polygon_distance(
    x_1W: np.ndarray, y_H1: np.ndarray, figure: str, radius: float, angle: tuple[float, float]
) -> np.ndarray:
    """Returns the signed distance to the edge that decides whether a point is inside, float64 [H, W], negative inside.

    Distances are in pixels.
    """
    normals_E2, apothem, spare = POLYGONS[figure]
    cos, sin = angle
    x_E11 = (normals_E2[:, 0] * cos - normals_E2[:, 1] * sin)[:, None, None]
    y_E11 = (normals_E2[:, 0] * sin + normals_E2[:, 1] * cos)[:, None, None]
    distance_EHW = x_E11 * x_1W + (y_E11 * y_H1 - apothem * radius)
    return np.partition(distance_EHW, -1 - spare, axis=0)[-1 - spare] if spare else distance_EHW.max(axis=0)


def _angle(rng: np.random.Generator) -> tuple[float, float]:
    """Draws (cos, sin) of a tilt of up to 2 atan(TILT) = 19 degrees either way; its half-angle's tangent is uniform."""
    half = TILT * (2 * rng.random() - 1)
    return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


def _color(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """Draws a colour uniformly from the box between two corners, float64 [2, 3] -> [3] in 0..255."""
    return box[0] + (box[1] - box[0]) * rng.random(3)


def example(split: str, index: int) -> tuple[np.ndarray, int]:
    """Returns image `index` of a split, uint8 [H, W, 3], and its label. Classes alternate, so they are balanced."""
    label = index % len(CLASS_NAMES)
    rng = np.random.Generator(np.random.PCG64([list(NUM_EXAMPLES).index(split), index]))
    return draw(rng, label), label


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; records {image: PNG, label}."""

    name = "shapes"
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Coloured figures of random place, size, angle, shade and background.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

    def _generate_examples(self, split):
        for index in range(NUM_EXAMPLES[split]):
            image, label = example(split, index)
            yield index, {"image": preparation.png(image), "label": label}


def prepare(data_dir: Path) -> Path:
    """Draws the data set into data_dir/shapes/VERSION unless it exists, in seconds, and returns that folder."""
    directory = data_dir / Shapes.name / VERSION

    def make() -> None:
        print(f"drawing the data set shapes into {directory} (only once, takes a few seconds)", file=sys.stderr)
        tfds.disable_progress_bar()
        preparation.write(Shapes(data_dir=data_dir, file_format="array_record"))

    return preparation.once(directory, directory.parent, make)
