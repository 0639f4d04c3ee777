"""Curves as inline SVG, whose colours are the page's, so that they follow it from light to dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dit_jax.reporting.markup import Html, element, joined
from dit_jax.reporting.smoothing import thinned

WIDE, NARROW = (720, 320), (360, 260)  # pixels; the page shows the one that fits
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42  # margins
MOST_POINTS = 400
DOTS_UP_TO = 40  # points of a curve; with more they would hide it
LOG_FROM = 5.0  # a logarithmic axis if the largest value is so many times the smallest


@dataclass(frozen=True)
class Curve:
    """x and y of one curve, NaN where it has a gap. `style`: class of its colour; `look`: bold, plain, faint or dashed."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    look: str = "plain"

    @property
    def dotted(self) -> bool:
        """Whether each point gets a dot: a line through one point is invisible."""
        return self.look in ("bold", "plain") and len(self.x) <= DOTS_UP_TO


class Axis(NamedTuple):
    """From values to pixels, with ticks at values."""

    place: Callable[[float], float]
    ticks: list[float]


def chart(curves: Sequence[Curve], alt: str, y_name: str, x_name: str, per_epoch: float | None = None) -> Html:
    """The curves over one another, with a legend; `per_epoch` of x is written as epochs below its ticks.

    Drawn twice, for wide and narrow screens, as text in a picture that shrinks would shrink too.
    """
    curves = [replace(curve, x=x, y=y) for curve in curves for x, y in [thinned(curve.x, curve.y, MOST_POINTS)]]
    drawn = (
        element("div", _svg(curves, size, alt, y_name, x_name, per_epoch), class_=name)
        for name, size in (("wide", WIDE), ("narrow", NARROW))
    )
    named = [curve for curve in curves if curve.name]
    legend = element("ul", *map(_legend_item, named), class_="legend") if len(named) > 1 else None
    return joined([*drawn, legend])


def small_chart(curves: Sequence[Curve], alt: str, y_name: str, x_name: str, per_epoch: float | None = None) -> Html:
    """One of several side by side, without a legend."""
    return _svg(curves, NARROW, alt, y_name, x_name, per_epoch)


def legend_of(curves: Sequence[Curve]) -> Html:
    """The legend alone, for several charts of the same curves."""
    return element("ul", *map(_legend_item, curves), class_="legend")


def _legend_item(curve: Curve) -> Html:
    swatch = element("span", Html(""), class_=f"swatch {curve.style} {curve.look}")
    return element("li", swatch, curve.name)


def _svg(
    curves: Sequence[Curve],
    size: tuple[int, int],
    alt: str,
    y_name: str,
    x_name: str,
    per_epoch: float | None,
) -> Html:
    width, height = size
    xs, ys = (_finite([getattr(curve, name) for curve in curves]) for name in "xy")
    logarithmic = ys.min() > 0 and ys.max() > LOG_FROM * ys.min()
    top = TOP + 18  # below the name of the axis
    x_axis = _linear(xs.min(), xs.max(), LEFT, width - RIGHT, width // 90, pad=0)
    make = _logarithmic if logarithmic else _linear
    y_axis = make(ys.min(), ys.max(), height - BOTTOM, top, 5)
    parts = [_y_grid(y_axis, width), _x_ticks(x_axis, height, per_epoch)]
    parts += [_drawn(curve, x_axis, y_axis) for curve in sorted(curves, key=lambda curve: curve.look == "bold")]
    scale = " (logarithmic)" if logarithmic else ""
    parts.append(_text(4, TOP + 4, f"{y_name}{scale}", "start", "name"))
    parts.append(_text(width - RIGHT, height - 4, x_name, "end", "name"))
    return element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=alt, class_="chart")


def _finite(columns: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate(columns)
    finite = values[np.isfinite(values)]
    return finite if len(finite) else np.zeros(1)


def _linear(low: float, high: float, start: float, end: float, count: int, pad: float = 0.06) -> Axis:
    """From 0 where the values are not far above it; a single value lies in the middle."""
    if 0 < low < 0.35 * high:
        low = 0.0
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    low, high = low - (pad * (high - low) if low else 0), high + pad * (high - low)
    return Axis(lambda v: start + (v - low) / (high - low) * (end - start), nice_ticks(low, high, count))


def _logarithmic(low: float, high: float, start: float, end: float, count: int) -> Axis:
    first, last = math.log10(low), math.log10(high)
    pad = 0.06 * (last - first)
    first, last = first - pad, last + pad
    place = lambda v: start + (math.log10(v) - first) / (last - first) * (end - start)  # noqa: E731
    return Axis(place, log_ticks(10**first, 10**last, count))


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; only powers, or every few of them, where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // (2 * count))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**k for k in decades if k % every == 0 for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 2 * count:
            break
    return ticks if len(ticks) > 1 else nice_ticks(low, high, count)


def _y_grid(axis: Axis, width: int) -> Html:
    parts = []
    for tick in axis.ticks:
        y = _r(axis.place(tick))
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(_text(LEFT - 8, axis.place(tick) + 4, f"{tick:.4g}", "end"))
    return joined(parts)


def _x_ticks(axis: Axis, height: int, per_epoch: float | None) -> Html:
    parts, base = [], height - BOTTOM + 16
    for tick in axis.ticks:
        parts.append(_text(axis.place(tick), base, short(tick), "middle"))
    if per_epoch and axis.ticks:
        parts.append(_text(4, height - 4, f"{short(axis.ticks[-1])} images = {axis.ticks[-1] / per_epoch:.3g} epochs"))
    return joined(parts)


def _drawn(curve: Curve, x_axis: Axis, y_axis: Axis) -> Html:
    places = [
        (x_axis.place(x), y_axis.place(y)) if math.isfinite(y) and math.isfinite(x) else None
        for x, y in zip(map(float, curve.x), map(float, curve.y), strict=True)
    ]
    path, pen = [], "M"
    for place in places:
        path.append(f"{pen}{_r(place[0])} {_r(place[1])}" if place else "")
        pen = "L" if place else "M"
    line = element("path", d="".join(path), class_=f"curve {curve.style} {curve.look}")
    if not curve.dotted:
        return line
    dots = (
        element(
            "circle",
            element("title", f"{curve.name} {y:.4g} at {short(float(x))}".strip()),
            cx=_r(place[0]),
            cy=_r(place[1]),
            r=3,
            class_=f"dot {curve.style}",
        )  # fmt: skip
        for x, y, place in zip(curve.x, curve.y, places, strict=True)
        if place
    )
    return joined([line, *dots])


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str | None = None) -> Html:
    return element("text", text, x=_r(x), y=_r(y), text_anchor=anchor, class_=kind)


def short(value: float) -> str:
    """12000 as 12k, 2500000 as 2.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _r(pixels: float) -> str:
    return f"{pixels:.1f}".removesuffix(".0")
