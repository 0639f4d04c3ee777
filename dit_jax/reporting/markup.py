"""HTML without a template engine: what is not markup already is escaped where it enters an element."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

SHARP = 64  # pixels: images up to here stay as they are, larger ones become thumbnails of THUMBNAIL
THUMBNAIL = 128
VOID = {"img", "meta", "link", "br", "hr"}  # elements that have no end


class Html(str):
    """Text that is markup already. Every other string is text, from whatever file it came."""


def element(tag: str, *children: str | None, **attributes: str | int | None) -> Html:
    """One element. None is left out, among children and attributes; `class_` is class and `aria_label` aria-label."""
    named = (
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    start = f"<{tag}{''.join(named)}>"
    return Html(start if tag in VOID else f"{start}{joined(children)}</{tag}>")


def joined(children: Iterable[str | None]) -> Html:
    """Children side by side, escaped where they are no markup."""
    return Html("".join(escaped(child) for child in children if child is not None))


def escaped(text: str) -> Html:
    """`text` as markup; lone surrogates, which a file name may hold, become question marks."""
    return text if isinstance(text, Html) else Html(html.escape(text.encode("utf-8", "replace").decode()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None, words: int = 1) -> Html:
    """A table whose first `words` columns are words and whose others are numbers; a wide one scrolls by itself."""

    def row(tag: str, cells: Sequence[str]) -> Html:
        kinds = ("word" if i < words else "number" for i in range(len(cells)))
        return element("tr", *(element(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)))

    body = element("tbody", *(row("td", cells) for cells in rows))
    whole = element("div", element("table", element("thead", row("th", head)), body), class_="scroll", tabindex=0)
    return element("figure", whole, element("figcaption", caption) if caption else None)


def command(text: str) -> Html:
    """A command line to copy."""
    return element("pre", element("code", text), tabindex=0)


def missing(why: str, how: str | None = None) -> Html:
    """A plain sentence in place of what is not there, with the command that makes it."""
    return element("div", element("p", why), command(how) if how else None, class_="missing")


def picture(image: np.ndarray, alt: str) -> Html:
    """An image uint8 [H, W, C] of the data's size, shown at twice its pixels or as a thumbnail."""
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
    """The bytes of a PNG or JPEG file."""
    stream = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 85}
    image.save(stream, kind, **options)
    return stream.getvalue()


def fitted(image: Image.Image, most: int) -> tuple[bytes, str]:
    """(bytes, kind) of a picture in at most about `most` bytes: a PNG, else a JPEG, smaller and smaller."""
    image = image.convert("RGB")
    data, kind = encoded(image, "PNG"), "PNG"
    while len(data) > most:
        data, kind = encoded(image, "JPEG"), "JPEG"
        image = image.resize((max(1, image.width * 2 // 3), max(1, image.height * 2 // 3)))
    return data, kind


def data_uri(data: bytes, kind: str) -> str:
    """The bytes as an address of their own, so that the page needs no other file."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
