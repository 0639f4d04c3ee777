"""Pictures of any kind as squares, against results that were computed without PIL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.data.pictures import read_square


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height, width):
    """A picture whose resizing does not overshoot, so that rounding and clipping make no difference."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def test_a_picture_of_the_size_is_kept_to_the_bit(tmp_path):
    pixels = noise(8, 8)
    for name in ("a.png", "a.webp"):
        image, enlarged = read_square(save(tmp_path / name, pixels, lossless=True), 8)
        np.testing.assert_array_equal(image, pixels)
        assert not enlarged


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(8, 13, 0, 2), (13, 8, 2, 0), (8, 12, 0, 2), (9, 8, 0, 0)]
)
def test_the_middle_square_is_cropped(height, width, top, left, tmp_path):
    pixels = noise(height, width)
    image, _ = read_square(save(tmp_path / "a.png", pixels), 8)
    np.testing.assert_array_equal(image, pixels[top : top + 8, left : left + 8])


@pytest.mark.parametrize(("height", "width", "size"), [(61, 90, 16), (48, 48, 20), (200, 133, 32), (10, 14, 32)])
def test_resizing_is_jaxs_antialiased_cubic(height, width, size, tmp_path):
    """`jax.image.resize` has the same kernel (Keys 1981, a = -1/2), widened in the same way for shrinking."""
    pixels = smooth(height, width)
    side, top, left = min(height, width), (height - min(height, width)) // 2, (width - min(height, width)) // 2
    square = jnp.asarray(pixels[top : top + side, left : left + side], jnp.float32)
    expected = jax.image.resize(square, (size, size, 3), "cubic", antialias=True)
    image, enlarged = read_square(save(tmp_path / "a.png", pixels), size)
    assert image.shape == (size, size, 3)
    assert np.abs(image - np.asarray(expected)).max() < 1.2  # PIL rounds after each of two passes
    assert enlarged == (side < size)


def test_stripes_too_fine_to_show_become_their_mean(tmp_path):
    """Rows are black and white in turn; without antialiasing, every eighth row, which is black, would be taken."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[1::2] = 255
    image, _ = read_square(save(tmp_path / "a.png", pixels), 8)
    assert np.abs(image.astype(int) - 127.5).max() < 8


GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17


def palette():
    picture = Image.new("P", (4, 4))
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    picture.putdata(GREY.ravel().tolist())
    return picture, np.stack([GREY, 255 - GREY, np.full_like(GREY, 7)], -1)


def with_alpha():
    """Returns red of several opacities and, by hand, what it looks like over white: a c + (1 - a) 255."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, np.array([255, 255, 0, 51])
    alpha = rgba[..., 3:] / 255.0
    return Image.fromarray(rgba), np.rint(alpha * rgba[..., :3] + (1 - alpha) * 255)


MODES = {
    "grey": lambda: (Image.fromarray(GREY), np.repeat(GREY[..., None], 3, -1)),
    "one bit": lambda: (Image.fromarray(GREY > 100), np.repeat(255 * (GREY > 100)[..., None], 3, -1)),
    "grey of 16 bits": lambda: (Image.fromarray(GREY.astype(np.uint16) * 257), np.repeat(GREY[..., None], 3, -1)),
    "palette": palette,
    "alpha": with_alpha,
    "grey and alpha": lambda: (
        Image.merge("LA", [Image.new("L", (4, 4), 0), Image.fromarray(GREY)]),
        np.repeat(255 - GREY[..., None], 3, -1),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, tmp_path):
    picture, expected = MODES[mode]()
    picture.save(tmp_path / "a.png")
    image, _ = read_square(tmp_path / "a.png", 4)
    assert image.shape == (4, 4, 3)
    assert np.abs(image - expected.astype(float)).max() <= 1


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path):
    picture, expected = palette()
    picture.save(tmp_path / "a.png", transparency=0)
    image, _ = read_square(tmp_path / "a.png", 4)
    np.testing.assert_array_equal(image, np.where(GREY[..., None] == 0, 255, expected))


def test_cmyk(tmp_path):
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    picture.save(tmp_path / "a.jpg", quality=100)
    image, _ = read_square(tmp_path / "a.jpg", 8)
    assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 4


TURNS = {  # what a viewer does with the stored pixels. Source: EXIF 2.3, tag 274
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_exif_says(orientation, tmp_path):
    pixels = noise(6, 6)
    exif = Image.Exif()
    exif[274] = orientation
    save(tmp_path / "a.png", pixels, exif=exif)
    image, _ = read_square(tmp_path / "a.png", 6)
    np.testing.assert_array_equal(image, TURNS[orientation](pixels))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_does_not_break_a_picture(tmp_path):
    pixels = noise(8, 8)
    save(tmp_path / "a.png", pixels, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    np.testing.assert_array_equal(read_square(tmp_path / "a.png", 8)[0], pixels)


def test_the_content_counts_not_the_name(tmp_path):
    pixels = noise(8, 8)
    save(tmp_path / "png_in_truth.jpg", pixels, format="PNG")
    np.testing.assert_array_equal(read_square(tmp_path / "png_in_truth.jpg", 8)[0], pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_truncated_picture_is_broken(name, tmp_path):
    path = save(tmp_path / name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Exception):  # noqa: B017, PT011 whatever PIL raises
        read_square(path, 32)


def test_another_format_under_a_pictures_name_is_broken(tmp_path):
    save(tmp_path / "a.png", noise(8, 8), format="BMP")
    with pytest.raises(OSError, match="cannot identify"):
        read_square(tmp_path / "a.png", 8)
