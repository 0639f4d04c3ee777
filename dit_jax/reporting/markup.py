"""Builds HTML without a template engine: text that is not markup yet is escaped as it enters an element."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

SHARP = 64  # pixels: images up to this size keep their pixels, larger ones become thumbnails of THUMBNAIL
THUMBNAIL = 128
VOID = {"img", "meta", "link", "br", "hr"}  # elements without an end tag


class Html(str):
    """A string that is already markup. Every other string is text, whatever file it comes from."""


def element(tag: str, *children: str | None, **attributes: str | int | None) -> Html:
    """Returns one element. A child or attribute of None is left out; `class_` is class and `aria_label` aria-label."""
    named = (
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    start = f"<{tag}{''.join(named)}>"
    return Html(start if tag in VOID else f"{start}{joined(children)}</{tag}>")


def joined(children: Iterable[str | None]) -> Html:
    """Returns the children side by side, escaped unless they are markup."""
    return Html("".join(escaped(child) for child in children if child is not None))


def escaped(text: str) -> Html:
    """Returns `text` as markup; lone surrogates, which a file name may contain, become question marks."""
    return text if isinstance(text, Html) else Html(html.escape(text.encode("utf-8", "replace").decode()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None, words: int = 1) -> Html:
    """Returns a table whose first `words` columns are words and the others numbers; a wide one scrolls by itself."""

    def row(tag: str, cells: Sequence[str]) -> Html:
        kinds = ("word" if i < words else "number" for i in range(len(cells)))
        return element("tr", *(element(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)))

    body = element("tbody", *(row("td", cells) for cells in rows))
    whole = element("div", element("table", element("thead", row("th", head)), body), class_="scroll", tabindex=0)
    return element("figure", whole, element("figcaption", caption) if caption else None)


def command(text: str) -> Html:
    """Returns a command line to copy."""
    return element("pre", element("code", text), tabindex=0)


def missing(why: str, how: str | None = None) -> Html:
    """Returns a sentence in place of missing content, with the command that makes it."""
    return element("div", element("p", why), command(how) if how else None, class_="missing")


def picture(image: np.ndarray, alt: str) -> Html:
    """Returns an image, uint8 [H, W, C], enlarged by an integer factor to at most SHARP pixels, or as a thumbnail."""
    height, width = image.shape[:2]
    drawn = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if max(height, width) > SHARP:
        drawn.thumbnail((THUMBNAIL, THUMBNAIL))
        shown, kind = drawn.size, "JPEG"
    else:
        scale = max(1, SHARP // max(height, width))
        shown, kind = (width * scale, height * scale), "PNG"
    return element("img", src=data_uri(encoded(drawn, kind), kind), alt=alt, width=shown[0], height=shown[1])


def encoded(image: Image.Image, kind: str) -> bytes:
    """Returns the image as the bytes of a PNG or JPEG file."""
    stream = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 85}
    image.save(stream, kind, **options)
    return stream.getvalue()


def fitted(image: Image.Image, most: int) -> tuple[bytes, str]:
    """Returns (bytes, kind) of a picture in at most `most` bytes: a PNG, or else a JPEG, shrunk until it fits."""
    image = image.convert("RGB")
    data, kind = encoded(image, "PNG"), "PNG"
    while len(data) > most:
        data, kind = encoded(image, "JPEG"), "JPEG"
        image = image.resize((max(1, image.width * 2 // 3), max(1, image.height * 2 // 3)))
    return data, kind


def data_uri(data: bytes, kind: str) -> str:
    """Returns the bytes as a data URI, so that the page needs no other file."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
