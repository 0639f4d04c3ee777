"""Draws curves as inline SVG in the page's colours, so that they follow its light or dark theme."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dit_jax.reporting.markup import Html, element, joined
from dit_jax.reporting.smoothing import is_wide, thinned

WIDE, HALF, NARROW = (960, 380), (470, 300), (360, 270)  # width, height in pixels; the page shows what fits
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 58  # margins, which include the axis names
MOST_POINTS = 400
DOTS_UP_TO = 40  # points of a curve; more dots would hide it
FROM_ZERO = 0.35  # a linear axis begins at 0 if the smallest value is below this share of the largest
PAD = 0.06  # share of an axis left free above its values, and below them unless it begins at 0


@dataclass(frozen=True)
class Curve:
    """x and y of a curve, NaN at a gap; `style` is the class of its colour, `look` bold, plain, faint or dashed.

    `dots`: whether its points may be marked with dots.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    look: str = "plain"
    dots: bool = True

    @property
    def dotted(self) -> bool:
        """Whether each point gets a dot: the line of a single point would be invisible."""
        return self.dots and self.look in ("bold", "plain") and len(self.x) <= DOTS_UP_TO


class Axes(NamedTuple):
    """Axis names; x per epoch, to write epochs below the axis; a level to draw as a line across, such as a floor."""

    y_name: str
    x_name: str
    x_per_epoch: float | None = None
    level: float | None = None


class Scale(NamedTuple):
    """Maps values to pixels; `ticks` are values."""

    place: Callable[[float], float]
    ticks: list[float]


def chart(curves: Sequence[Curve], axes: Axes, alt: str) -> Html:
    """Returns a chart of all curves, with a legend, in two sizes: the text of a scaled-down one would shrink too."""
    named = [curve for curve in curves if curve.name]
    legend = legend_of(named) if len(named) > 1 else None
    return joined([_in_both(curves, axes, alt, WIDE), legend])


def small_chart(curves: Sequence[Curve], axes: Axes, alt: str) -> Html:
    """Returns one of two charts side by side, without a legend."""
    return _in_both(curves, axes, alt, HALF)


def _in_both(curves: Sequence[Curve], axes: Axes, alt: str, wide: tuple[int, int]) -> Html:
    curves = [replace(curve, x=x, y=y) for curve in curves for x, y in [thinned(curve.x, curve.y, MOST_POINTS)]]
    sizes = {"wide": wide, "narrow": NARROW}
    return joined(element("div", _svg(curves, axes, alt, size), class_=name) for name, size in sizes.items())


def legend_of(curves: Sequence[Curve]) -> Html:
    """Returns only the legend, for several charts of the same curves."""
    return element("ul", *map(_legend_item, curves), class_="legend")


def _legend_item(curve: Curve) -> Html:
    swatch = element("span", Html(""), class_=f"swatch {curve.style} {curve.look}")
    return element("li", swatch, curve.name)


def _svg(curves: Sequence[Curve], axes: Axes, alt: str, size: tuple[int, int]) -> Html:
    width, height = size
    levels = [] if axes.level is None else [np.array([axes.level])]
    xs, ys = _finite([curve.x for curve in curves]), _finite([*(curve.y for curve in curves), *levels])
    logarithmic = is_wide(ys)
    x_scale = _linear(min(0.0, xs.min()), xs.max(), LEFT, width - RIGHT, width // 70, pad=0)
    y_scale = (_logarithmic if logarithmic else _linear)(ys.min(), ys.max(), height - BOTTOM, TOP, 5)
    parts = [_y_grid(y_scale, width), _x_ticks(x_scale, height, axes.x_per_epoch)]
    if axes.level is not None:
        y = _r(y_scale.place(axes.level))
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="curve ink dashed"))
    parts += [_drawn(curve, x_scale, y_scale) for curve in sorted(curves, key=lambda curve: curve.look == "bold")]
    parts.append(_text(2, 14, f"{axes.y_name}{' (logarithmic)' if logarithmic else ''}", "start", "name"))
    x_name = f"{axes.x_name}, epochs below" if axes.x_per_epoch else axes.x_name
    parts.append(_text(width - RIGHT, height - 6, x_name, "end", "name"))
    return element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=alt, class_="chart")


def _finite(columns: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate(columns)
    finite = values[np.isfinite(values)]
    return finite if len(finite) else np.zeros(1)


def _linear(low: float, high: float, start: float, end: float, count: int, pad: float = PAD) -> Scale:
    """Returns a scale that begins at 0 if the values are not far above it; a single value lies in the middle."""
    if 0 < low < FROM_ZERO * high:
        low = 0.0
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    low, high = low - (pad * (high - low) if low else 0), high + pad * (high - low)
    return Scale(lambda v: start + (v - low) / (high - low) * (end - start), nice_ticks(low, high, count))


def _logarithmic(low: float, high: float, start: float, end: float, count: int) -> Scale:
    first, last = math.log10(low), math.log10(high)
    pad = PAD * (last - first)
    first, last = first - pad, last + pad
    place = lambda v: start + (math.log10(v) - first) / (last - first) * (end - start)  # noqa: E731
    return Scale(place, log_ticks(10**first, 10**last, count))


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten in [low, high]; fewer if those are too many, `nice_ticks` if too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // (2 * count))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**k for k in decades if k % every == 0 for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 2 * count:
            break
    return ticks if len(ticks) > 1 else nice_ticks(low, high, count)


def _y_grid(scale: Scale, width: int) -> Html:
    parts = []
    for tick in scale.ticks:
        y = _r(scale.place(tick))
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(_text(LEFT - 8, scale.place(tick) + 4, plain(tick), "end"))
    return joined(parts)


def _x_ticks(scale: Scale, height: int, x_per_epoch: float | None) -> Html:
    parts, base = [], height - BOTTOM + 17
    for tick in scale.ticks:
        parts.append(_text(scale.place(tick), base, short(tick), "middle"))
        if x_per_epoch:
            parts.append(_text(scale.place(tick), base + 15, plain(tick / x_per_epoch), "middle", "epoch"))
    return joined(parts)


def _drawn(curve: Curve, x_scale: Scale, y_scale: Scale) -> Html:
    places = [
        (x_scale.place(x), y_scale.place(y)) if math.isfinite(y) and math.isfinite(x) else None
        for x, y in zip(map(float, curve.x), map(float, curve.y), strict=True)
    ]
    path, pen = [], "M"
    for place in places:
        path.append(f"{pen}{_r(place[0])} {_r(place[1])}" if place else "")
        pen = "L" if place else "M"
    line = element("path", d="".join(path), class_=f"curve {curve.style} {curve.look}")
    if not curve.dotted:
        return line
    dots = []
    for x, y, place in zip(curve.x, curve.y, places, strict=True):
        if place:
            told = element("title", f"{curve.name} {y:.4g} at {short(float(x))}")
            dots.append(element("circle", told, cx=_r(place[0]), cy=_r(place[1]), r=3, class_=f"dot {curve.style}"))
    return joined([line, *dots])


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str | None = None) -> Html:
    return element("text", text, x=_r(x), y=_r(y), text_anchor=anchor, class_=kind)


def plain(value: float) -> str:
    """Formats 0.00001 as 1e-5 and 12500 as 12,500, to fit beside an axis."""
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, _, power = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def short(value: float) -> str:
    """Formats 12000 as 12k and 2500000 as 2.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _r(pixels: float) -> str:
    return f"{pixels:.1f}".removesuffix(".0")
