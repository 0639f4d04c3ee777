"""The user's own images: what is read, and the line about what is refused."""

import errno
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from dit_jax.data.images import open_images, read_mask
from dit_jax.data.pictures import read_square
from dit_jax.errors import UserError

SHAPE = (4, 6, 3)
PIXELS = np.arange(2 * 72, dtype=np.uint8).reshape(2, *SHAPE)


def read_images(path, shape, what):
    found = open_images(path, shape, 3, what)
    images = np.concatenate(list(found.chunks()))
    assert len(images) == found.count
    return images, found.labels


def test_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=[2, 1])
    images, labels = read_images(tmp_path / "a.npz", SHAPE, "k")
    np.testing.assert_array_equal(images, PIXELS)
    assert labels.tolist() == [2, 1]


def test_pictures_in_order_of_name(tmp_path):
    for name, pixels in (("b.png", PIXELS[1]), ("a.PNG", PIXELS[0])):
        Image.fromarray(pixels).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    images, labels = read_images(tmp_path, SHAPE, "k")
    np.testing.assert_array_equal(images, PIXELS)
    assert labels is None
    np.testing.assert_array_equal(read_images(tmp_path / "b.png", SHAPE, "k")[0], PIXELS[1:])


def test_parts_are_all_images_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("dit_jax.data.images.CHUNK", 3)
    many = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=many)
    for i, pixels in enumerate(many):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    for path in (tmp_path / "a.npz", tmp_path):
        parts = list(open_images(path, SHAPE, 3).chunks())
        assert [len(part) for part in parts] == [3, 3, 2]
        np.testing.assert_array_equal(np.concatenate(parts), many)


def test_an_array_of_adms_name_is_taken_and_others_are_named(tmp_path):
    np.savez(tmp_path / "adm.npz", arr_0=PIXELS)
    np.testing.assert_array_equal(read_images(tmp_path / "adm.npz", SHAPE, "k")[0], PIXELS)
    assert read_images(tmp_path / "adm.npz", SHAPE, "k")[1] is None
    for labels in ((np.arange(len(PIXELS)) % 2,), ()):
        np.savez(tmp_path / "adm.npz", PIXELS, *labels, **({} if labels else {"labels": np.arange(len(PIXELS)) % 2}))
        assert read_images(tmp_path / "adm.npz", SHAPE, "k")[1].tolist() == [i % 2 for i in range(len(PIXELS))]
    np.savez(tmp_path / "both.npz", arr_0=PIXELS[:1], images=PIXELS)
    np.testing.assert_array_equal(read_images(tmp_path / "both.npz", SHAPE, "k")[0], PIXELS)
    np.savez(tmp_path / "other.npz", samples=PIXELS, y=[1])
    with pytest.raises(UserError, match="it has no array `images`, only samples, y"):
        read_images(tmp_path / "other.npz", SHAPE, "k")


def test_hidden_files_are_passed_over(tmp_path):
    """Macs leave such a file beside each one that they copy."""
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(read_images(tmp_path, SHAPE, "k")[0], PIXELS[:1])


def test_a_turned_picture_is_read_upright(tmp_path):
    """EXIF's orientation 6: the stored picture is to be turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS[0])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_images(tmp_path, SHAPE, "k")[0], PIXELS[:1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_bit_of_an_npz_is_found(save, tmp_path):
    """Only a change of the zip's metadata may go unnoticed, and then the images are right."""
    save(tmp_path / "whole.npz", images=PIXELS, labels=[2, 1])
    whole = (tmp_path / "whole.npz").read_bytes()
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << i % 8
        (tmp_path / "x.npz").write_bytes(flipped)
        try:
            images, _ = read_images(tmp_path / "x.npz", SHAPE, "k")
        except UserError:
            continue
        np.testing.assert_array_equal(images, PIXELS)


def test_any_flipped_bit_of_a_png_is_found(tmp_path):
    """Or it changes no pixel; `read_square` reads the same file."""
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    content, found = path.read_bytes(), 0
    for i in range(0, 8 * len(content), 5):
        damaged = bytearray(content)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        for read in (lambda: read_images(path, (8, 8, 3), "x")[0][0], lambda: read_square(path, 8)[0]):
            try:
                np.testing.assert_array_equal(read(), pixels, f"bit {i}")
            except (OSError, SyntaxError, ValueError, UserError):
                found += 1
    assert found > 300


def test_a_mask_is_where_it_is_white(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 1, 4, "k")[:, :, 0].tolist() == [[False, False, True, True]]


def npz(**arrays):
    return lambda folder: np.savez(folder / "x.npz", **arrays) or folder / "x.npz"


def picture(name, pixels, **options):
    return lambda folder: Image.fromarray(pixels).save(folder / name, **options) or folder / name


SEE_THROUGH = np.dstack([PIXELS[0], np.full(SHAPE[:2], 254, np.uint8)])


def text(name):
    return lambda folder: (folder / name).write_text("no picture") and folder / name


def no_array(name):
    """Returns a function that makes an NPZ file with text in place of the array `name`."""

    def make(folder):
        np.savez(folder / "x.npz", images=PIXELS)
        with zipfile.ZipFile(folder / "y.npz", "w") as file:
            if name != "images.npy":
                file.writestr("images.npy", zipfile.ZipFile(folder / "x.npz").read("images.npy"))
            file.writestr(name, b"words")
        return folder / "y.npz"

    return make


def sixteen_bits(folder):
    """Writes a PNG with 16 bits per colour, by the PNG specification's section 11; Pillow cannot write one."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    rows = b"".join(b"\0" + b"\x12\xff" * 3 * SHAPE[1] for _ in range(SHAPE[0]))
    header = struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return folder / "x.png"


MISTAKES = {
    "nothing there": (lambda folder: folder / "none.png", "there is no such file or folder"),
    "an empty folder": (lambda folder: folder, "it has no pictures"),
    "a broken picture": (text("broken.png"), "broken.png cannot be read"),
    "a broken npz": (text("broken.npz"), "cannot be read"),
    "another array": (npz(pictures=PIXELS), "cannot be read"),
    "objects": (npz(images=np.array([{}], object)), "cannot be read"),
    "no array": (no_array("images.npy"), "not an array"),
    "labels that are no array": (no_array("labels.npy"), "not an array"),
    "floats": (npz(images=PIXELS / 255), "float64"),
    "another size": (npz(images=PIXELS[:, :3]), "(3, 6, 3)"),
    "no image": (npz(images=PIXELS[:0]), "it has no image"),
    "no npz by any name": (text("x.bmp"), "neither a complete NPZ file nor named as a picture (.png"),
    "16 bits": (picture("x.png", np.full(SHAPE[:2], 40_000, np.uint16)), "more than 8 bits per channel"),
    "16 bits a colour": (sixteen_bits, "more than 8 bits per channel"),
    "see-through": (picture("x.png", SEE_THROUGH), "transparent in places"),
    "moving": (
        picture("x.png", PIXELS[0], save_all=True, append_images=[Image.fromarray(PIXELS[1])]),
        "has 2 frames",
    ),
    "labels of others": (npz(images=PIXELS, labels=[1, 2, 3]), "one per image"),
    "labels below zero": (npz(images=PIXELS, labels=[-1, 2]), "-1..2"),
    "labels out of range": (npz(images=PIXELS, labels=[1, 3]), "its labels are 1..3; the data set's are 0..2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path):
    make, words = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        read_images(make(tmp_path), SHAPE, "sample.images")
    assert words in str(caught.value)
    assert "sample.images" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_still_picture_of_8_bits_will_do(tmp_path):
    """With opaque alpha, with a palette, in black and white, or CMYK: as Pillow converts it to RGB."""
    plain = Image.fromarray(PIXELS[0])
    for name, made in {
        "a.png": Image.fromarray(np.dstack([PIXELS[0], np.full(SHAPE[:2], 255, np.uint8)])),
        "b.png": plain.convert("P", palette=Image.Palette.ADAPTIVE, colors=24),
        "c.jpg": plain.convert("CMYK"),
        "d.png": plain.convert("1"),
    }.items():
        made.save(tmp_path / name)
    images, _ = read_images(tmp_path, SHAPE, "k")
    np.testing.assert_array_equal(images[:2], [PIXELS[0]] * 2)
    assert images.shape == (4, *SHAPE)


def test_a_picture_of_another_size_is_named(tmp_path):
    Image.new("RGB", (32, 16)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png has images of \(16, 32, 3\), but the data set has \(4, 6, 3\)"):
        read_images(tmp_path, SHAPE, "sample.images")


def test_pictures_to_start_from_are_made_to_fit_as_those_of_a_training_are(tmp_path):
    """The middle square of six by four pixels; the same from a picture of that square, enlarged ninefold."""
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[1][:, 1:5]).save(tmp_path / "b.png")
    for path in (tmp_path, tmp_path / "a.png"):
        found = np.concatenate(list(open_images(path, (4, 4, 3), 3, fit=True).chunks()))
        np.testing.assert_array_equal(found, PIXELS[: len(found), :, 1:5])
    Image.fromarray(np.kron(PIXELS[0][:, 1:5], np.ones((9, 9, 1), np.uint8))).save(tmp_path / "large.png")
    large = next(open_images(tmp_path / "large.png", (4, 4, 3), 3, fit=True).chunks())[0]
    assert np.abs(large.astype(int) - PIXELS[0][:, 1:5]).max() <= 3  # bicubic, over the edges of nine equal pixels
    grey = next(open_images(tmp_path / "large.png", (4, 4, 1), 3, fit=True).chunks())
    assert grey.shape == (1, 4, 4, 1)
    np.savez(tmp_path / "n.npz", images=PIXELS)
    with pytest.raises(UserError, match="has images of"):  # arrays are used as they are
        open_images(tmp_path / "n.npz", (4, 4, 3), 3, fit=True)


def test_of_a_folder_no_more_is_decoded_than_asked_for(tmp_path):
    for name, pixels in (("a.png", PIXELS[0]), ("b.png", PIXELS[1])):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"broken")
    found = open_images(tmp_path, SHAPE, 3, most=2)
    assert found.count == 2
    np.testing.assert_array_equal(np.concatenate(list(found.chunks())), PIXELS)


def test_a_mask_fits_as_the_picture_does(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 4, 4, "k")[:, :, 0].tolist() == [[False, False, True, True]] * 4


def test_a_file_server_that_is_gone_breaks_no_picture(tmp_path, monkeypatch):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")

    def late(path):
        raise OSError(errno.ETIMEDOUT, "Connection timed out", str(path))

    monkeypatch.setattr("dit_jax.data.images.check_sums", late)
    with pytest.raises(TimeoutError):
        open_images(tmp_path, SHAPE, 3, skip_broken=True)


def test_a_pipe_is_no_picture(tmp_path):
    """Opening one would block for ever."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be read"):
        list(open_images(tmp_path, (4, 4, 3), 3).chunks())
