"""Markup: nothing that comes from a file can become an element, and pictures are the bytes that went in."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dit_jax.reporting.markup import Html, data_uri, element, fitted, missing, picture, table

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://a.b/c>"


class Reader(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "made",
    [
        element("p", EVIL),
        element("p", title=EVIL),
        element("p", element("b", EVIL)),
        table([EVIL], [[EVIL]], EVIL),
        missing(EVIL, EVIL),
        picture(np.zeros((2, 2, 3), np.uint8), EVIL),
    ],
)
def test_text_stays_text(made):
    read = Reader(made)
    assert not {"script"} & {tag for tag, _ in read.tags}
    assert all(not attributes.get("src", "data:").startswith("http") for _, attributes in read.tags)
    assert EVIL in read.text or EVIL in [value for _, attributes in read.tags for value in attributes.values()]


def test_elements():
    made = element("a", "b", None, Html("<i></i>"), class_="c d", aria_label="e", title=None, href=0)
    assert made == '<a class="c d" aria-label="e" href="0">b<i></i></a>'
    assert element("img", src="x") == '<img src="x">'


def test_a_name_that_is_no_unicode_does_not_stop_the_page():
    """Linux allows any bytes in file names; Python holds odd ones as lone surrogates, which UTF-8 cannot encode."""
    assert element("p", "caf\udce9").encode()


def decoded(markup):
    (image,) = (attributes for tag, attributes in Reader(markup).tags if tag == "img")
    kind, _, data = image["src"].partition(",")
    return image, kind, Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("shape", "shown"), [((32, 32, 3), (64, 64)), ((8, 8, 1), (64, 64)), ((64, 48, 3), (48, 64))])
def test_small_pictures_are_exact_and_enlarged_by_a_whole_factor(shape, shown):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image, kind, got = decoded(picture(pixels, "a"))
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(got).reshape(shape), pixels)
    assert (int(image["width"]), int(image["height"])) == shown


def test_large_pictures_become_thumbnails():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    image, kind, got = decoded(picture(pixels, "a"))
    assert kind == "data:image/jpeg;base64"
    assert got.size == (int(image["width"]), int(image["height"])) == (128, 64)
    assert len(image["src"]) < 30_000


def test_a_picture_is_made_to_fit():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    flat = Image.new("RGB", (400, 600), "red")
    assert fitted(flat, 50_000)[1] == "PNG"
    data, kind = fitted(noise, 50_000)
    assert kind == "JPEG"
    assert len(data) <= 50_000
    assert Image.open(io.BytesIO(data)).width < 600
    assert data_uri(b"a", "JPEG") == "data:image/jpeg;base64,YQ=="
