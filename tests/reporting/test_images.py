"""Pixels by hand: the map to bytes, and where the pictures of a grid lie."""

import os

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_jax.reporting import images as reporting
from dit_jax.reporting.images import about_png, label_grid, save_png, to_uint8

WHITE = 255


def flat(n: int, height: int, width: int, color) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (n, height, width, len(color))).copy()


def boxes(grid: np.ndarray, color) -> list[tuple[int, int, int, int]]:
    """Returns (top, left, height, width) of the runs of columns that hold `color`, left to right."""
    mask = (grid == np.array(color)).all(-1)
    columns = np.flatnonzero(mask.any(0))
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    tops = [np.flatnonzero(mask[:, run].any(1)) for run in runs]
    return [(int(t[0]), int(run[0]), len(t), len(run)) for t, run in zip(tops, runs, strict=True)]


def test_to_uint8_by_hand():
    x = np.array([-1, 1, 0, -0.5, 0.5, -1.7, 1.01, np.inf, -np.inf, np.nan])
    # (x + 1) * 127.5: 0, 255, 127.5 (half to even: 128), 63.75, 191.25; beyond the range clipped; NaN black
    expected = [0, 255, 128, 64, 191, 0, 255, 255, 0, 0]
    assert to_uint8(x).dtype == np.uint8
    np.testing.assert_array_equal(to_uint8(x), expected)
    np.testing.assert_array_equal(to_uint8(x.reshape(2, 5)), np.reshape(expected, (2, 5)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_uint8_undoes_the_scaling_of_the_data(dtype):
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(pixels.astype(dtype) / 127.5 - 1), pixels)


def test_grid_puts_each_image_in_its_row_unchanged():
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    images = np.concatenate([flat(1, 6, 10, blue), flat(2, 6, 10, red), flat(1, 6, 10, green)])
    grid = label_grid(images, np.array([2, 0, 0, 2]), ("a", "absent", "b"), scale=3)
    assert grid.dtype == np.uint8
    assert grid.shape[2] == 3
    first, second = boxes(grid, red)
    (third,), (fourth,) = boxes(grid, blue), boxes(grid, green)
    assert {box[2:] for box in (first, second, third, fourth)} == {(18, 30)}
    assert first[0] == second[0] < third[0] == fourth[0]  # class 0 above class 2, no row between
    assert third[0] - first[0] == 18 + 4
    assert (third[1], fourth[1]) == (first[1], second[1])  # aligned, in the order given
    # A name is at the left of each row: dark pixels left of the first image.
    for top, left, height, _ in (first, third):
        assert grid[top : top + height, : left - 2].min() < 100


def test_grid_enlarges_without_smoothing_and_leaves_missing_images_blank():
    image = np.random.default_rng(0).integers(0, 200, (4, 16, 16, 3), np.uint8)
    grid = label_grid(image, np.array([0, 0, 0, 1]), ("x", "y"), scale=2)
    big = image.repeat(2, axis=1).repeat(2, axis=2)
    left = grid.shape[1] - 6 - 3 * 36 + 2  # margin 6, three cells of 32 + 2 * 2
    np.testing.assert_array_equal(grid[8:40, left : left + 32], big[0])
    np.testing.assert_array_equal(grid[8:40, left + 72 : left + 104], big[2])
    np.testing.assert_array_equal(grid[44:76, left : left + 32], big[3])
    assert (grid[42:, left + 34 :] == WHITE).all()


def test_grid_columns_are_a_limit():
    images, labels = flat(15, 8, 8, (9, 9, 9)), np.zeros(15, np.int32)
    assert len(boxes(label_grid(images, labels, ("c",))[:, 30:], (9, 9, 9))) == 10
    assert len(boxes(label_grid(images, labels, ("c",), columns=4)[:, 30:], (9, 9, 9))) == 4


def test_grid_of_gray_images_is_gray():
    grid = label_grid(flat(1, 28, 28, (77,)), np.array([0]), ("zero",), scale=1)
    ((_, _, height, width),) = boxes(grid[:, -38:], (77, 77, 77))
    assert (height, width) == (28, 28)


@pytest.mark.parametrize("height", [2, 8, 200])
def test_a_name_is_never_cut_nor_wider_than_nine_letters(height):
    short = label_grid(flat(1, height, 8, (9, 9, 9)), np.array([0]), ("g",), scale=1)
    long = label_grid(flat(1, height, 8, (9, 9, 9)), np.array([0]), ("g" * 200,), scale=1)
    assert short.shape[1] < long.shape[1] < 350
    for edge in (long[:3], long[-3:], long[:, :3]):
        assert (edge == WHITE).all()


def test_a_thousand_classes_stay_a_picture():
    labels = np.arange(1000)
    images = flat(1000, 8, 8, (1, 2, 3))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels // 250, labels % 250
    images[:, 0, 0, 2] = 251  # a colour that occurs nowhere else
    grid = label_grid(images, labels, [f"class {k}" for k in labels], scale=1)
    marks = grid[grid[..., 2] == 251]
    marks = marks[marks[:, 0] < 4]
    assert sorted(int(r) * 250 + int(g) for r, g, _ in marks) == list(range(1000))
    assert max(grid.shape) < 6000


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 0], "float32"),
        (np.zeros((2, 4, 4, 2), np.uint8), [0, 0], r"\(2, 4, 4, 2\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], r"n >= 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], r"\(1,\) for 2 images"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], r"0\.\.2; there are 2 class names"),
        (np.zeros((2, 4, 4, 3), np.uint8), [-1, 0], r"-1\.\.0"),
    ],
)
def test_grid_refuses(images, labels, message):
    with pytest.raises(ValueError, match=message):
        label_grid(images, np.array(labels, np.int32), ("a", "b"))


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 5, 1), (3, 5)])
def test_save_png_keeps_the_pixels(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save_png(tmp_path / "new" / "a.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), np.squeeze(array))
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_save_png_leaves_the_old_picture_when_it_fails(tmp_path):
    path = tmp_path / "a.png"
    save_png(path, np.zeros((2, 2, 3), np.uint8))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_png(path, np.zeros((2, 2, 5), np.uint8))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_grid_that_would_be_too_large_is_not_enlarged(monkeypatch):
    """Twelve cells of 8 + 4 and 16 + 4 pixels: 1,728 and 4,800 in all."""
    images, labels = flat(12, 8, 8, (255, 0, 0)), np.repeat(np.arange(2), 6)
    for most, size in ((4800, 16), (4799, 8), (1, 8)):
        monkeypatch.setattr(reporting, "MOST_PIXELS", most)
        assert {box[3] for box in boxes(label_grid(images, labels, ("a", "b")), (255, 0, 0))} == {size}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3"])
def test_a_png_whose_text_is_none_of_ours_says_nothing(text, tmp_path):
    about = PngInfo()
    about.add_text("dit-jax", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=about)
    assert about_png(tmp_path / "a.png") == {}


def test_a_png_too_large_to_be_opened_says_nothing(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", flat(1, 40, 40, (1, 2, 3))[0], {"step": 3})
    assert about_png(tmp_path / "a.png") == {"step": 3}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 // 2 - 1)
    assert about_png(tmp_path / "a.png") == {}


def test_names_beyond_ascii_are_letters_and_no_boxes():
    font = reporting.font_of(20)
    drawn = {text: bytes(font.getmask(text)) for text in ("é", "ж", "λ", "\uffff")}
    assert len(set(drawn.values())) == 4  # the last is drawn as letters that the font lacks
