"""`shapes`: reproducible bytes, balanced and distinct splits, and figures that measurements can tell apart."""

import hashlib

import numpy as np
import pytest

from dit_jax.data import shapes
from tests.shapes_judge import measure

# Largest disc around the centre that lies inside the figure, in radii, by geometry: a square's and a triangle's
# inscribed circle cos(45 deg) and cos(60 deg); a pentagram's inner corners cos(72 deg) / cos(36 deg); a ring has none.
INRADIUS = {"circle": 1.0, "square": 0.7071, "triangle": 0.5, "star": 0.3820, "ring": 0.0}


@pytest.fixture(scope="module")
def sample():
    examples = [shapes.example("train", i) for i in range(1000)]
    return np.stack([image for image, _ in examples]), np.array([label for _, label in examples])


def figure_mask(image):
    """Finds the figure's pixels by their saturation; backgrounds are close to grey."""
    saturation = image.max(axis=-1).astype(int) - image.min(axis=-1)
    return saturation > (image[0, 0].max().astype(int) - image[0, 0].min() + saturation.max()) / 2


def inradius(mask):
    """Returns the distance from the figure's centre to the nearest pixel outside, over that to the farthest inside.

    The outline is half a pixel nearer than the former and half a pixel farther than the latter.
    """
    pixels, outside = np.argwhere(mask), np.argwhere(~mask)
    middle = pixels.mean(axis=0)
    nearest, farthest = np.hypot(*(outside - middle).T).min(), np.hypot(*(pixels - middle).T).max()
    return (nearest - 0.5) / (farthest + 0.5)


def test_an_image_is_the_same_in_any_order():
    forward = [shapes.example("train", i)[0] for i in range(40)]
    backward = [shapes.example("train", i)[0] for i in reversed(range(40))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_image_format(sample):
    images, labels = sample
    assert images.dtype == np.uint8
    assert images.shape == (1000, 32, 32, 3)
    assert set(labels) == set(range(10))


def test_classes_are_named_by_colour_and_figure():
    assert len(set(shapes.CLASS_NAMES)) == 10
    assert "red circle" in shapes.CLASS_NAMES
    assert "blue star" in shapes.CLASS_NAMES


@pytest.mark.parametrize("split", ["train", "test"])
def test_ten_classes_take_turns_in_splits_of_whole_rounds(split):
    assert shapes.NUM_EXAMPLES == {"train": 20_000, "test": 2_000}
    rounds = [*range(20), *range(shapes.NUM_EXAMPLES[split] - 10, shapes.NUM_EXAMPLES[split])]
    assert [shapes.example(split, i)[1] for i in rounds] == [*range(10)] * 3


def test_no_image_comes_twice_within_or_across_splits():
    digests = {
        hashlib.sha256(shapes.example(split, i)[0].tobytes()).digest()
        for split in ("train", "test")
        for i in range(500)
    }
    assert len(digests) == 1000


def test_hue_tells_the_colour_family(sample):
    images, labels = sample
    for image, label in zip(images, labels, strict=True):
        red, green, blue = np.median(image[figure_mask(image)], axis=0)
        assert shapes.CLASS_NAMES[label].startswith("red" if red > blue else "blue")
        assert max(red, blue) - green > 25


def test_inscribed_circle_tells_the_figure(sample):
    images, labels = sample
    measured = np.array([inradius(figure_mask(image)) for image in images])
    truth = np.array([shapes.CLASS_NAMES[label].split()[1] for label in labels])
    names = np.array(list(INRADIUS))
    nearest = names[np.abs(measured[:, None] - np.array(list(INRADIUS.values()))).argmin(axis=1)]
    assert (nearest == truth).mean() > 0.97


def test_figures_have_a_radius_of_10_to_14(sample):
    for image in sample[0]:
        pixels = np.argwhere(figure_mask(image))
        assert 12 <= np.ptp(pixels, axis=0).max() + 1 <= 29


def test_edges_are_antialiased(sample):
    """Of the about 2 pi r pixels on the outline, many are neither background nor fill, but blends of the two."""
    images, labels = sample
    for image in images[labels == shapes.CLASS_NAMES.index("red circle")][:20].astype(float):
        background, fill = image[0, 0], np.median(image[figure_mask(image.astype(np.uint8))], axis=0)
        share = (image - background) @ (fill - background) / np.sum((fill - background) ** 2)
        between = (share > 0.02) & (share < 0.98)
        assert between.sum() > 40
        on_the_line = background + share[..., None] * (fill - background)
        assert np.abs(image - on_the_line).max() < 1.5


def test_coverage_adds_up_to_the_area():
    """The sum over pixels is the area: pi r^2 of a circle, 2 r^2 of a square, 3 sqrt(3) / 4 r^2 of a triangle."""
    radius, center, angle = 11.0, np.array([15.3, 16.8]), (0.6, 0.8)
    hole = shapes.RING_HOLE
    areas = {"circle": np.pi, "square": 2.0, "triangle": 1.2990, "star": 1.1226, "ring": np.pi * (1 - hole**2)}
    for figure, area in areas.items():
        assert shapes.coverage(figure, center, radius, angle).sum() == pytest.approx(area * radius**2, rel=0.02)


def test_backgrounds_shades_sizes_and_places_vary(sample):
    measures = measure(sample[0])
    assert measures.background.std(axis=0).min() > 60  # light and dark ones
    reds = measures.fill[sample[1] < 5]
    assert reds.std(axis=0).min() > 10
    assert measures.center.std(axis=0).min() > 2
    assert measures.area.std() > 40


def test_measure_reads_what_was_drawn():
    image = np.full((1, 32, 32, 3), 200, np.uint8)
    image[0, 10:20, 4:10] = (250, 20, 40)  # rows 10..19, columns 4..9
    measures = measure(image)
    np.testing.assert_array_equal(measures.background, [[200, 200, 200]])
    np.testing.assert_array_equal(measures.fill, [[250, 20, 40]])
    np.testing.assert_array_equal(measures.area, [60])
    np.testing.assert_array_equal(measures.center, [[7.0, 15.0]])  # (x, y)
