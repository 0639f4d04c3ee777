"""Charts: ticks by hand, points where they belong, gaps where there is no number."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dit_jax.reporting.charts import (
    LEFT,
    NARROW,
    RIGHT,
    Axes,
    Curve,
    chart,
    log_ticks,
    nice_ticks,
    plain,
    short,
    small_chart,
)
from dit_jax.reporting.smoothing import thinned


def drawn(curves, axes=None):
    """Returns the two pictures of a chart, wide and narrow."""
    made = small_chart(curves, axes or Axes("loss", "images seen"), "what it shows")
    return list(ET.fromstring(f"<div>{made}</div>").iter("svg"))


def curve(x, y, look="plain"):
    return Curve("a curve", np.asarray(x, float), np.asarray(y, float), "s1", look)


def path(svg):
    (found,) = (p.get("d") for p in svg.iter("path"))
    return found


def points(svg):
    return [tuple(map(float, place.split())) for place in re.split("[ML]", path(svg))[1:]]


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0, 1, 4, [0, 0.5, 1]),
        (28, 71.5, 5, [30, 40, 50, 60, 70]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
        (0.1234, 0.1236, 2, [0.1234, 0.1235, 0.1236]),
    ],
)
def test_ticks(low, high, count, ticks):
    assert nice_ticks(low, high, count) == pytest.approx(ticks)


def test_ticks_of_logarithms():
    assert log_ticks(0.09, 2.2, 5) == pytest.approx([0.1, 0.2, 0.5, 1, 2])
    assert log_ticks(1, 1e8, 5) == pytest.approx([10.0**k for k in range(9)])
    assert log_ticks(5.5, 8, 5) == nice_ticks(5.5, 8, 5)
    assert len(log_ticks(1e-300, 1e300, 5)) <= 12


def test_numbers_as_people_write_them():
    assert [short(v) for v in (0, 950, 12_000, 2_500_000, 3e9)] == ["0", "950", "12k", "2.5M", "3G"]


def test_numbers_beside_an_axis():
    values = (0, 1e-5, 0.002, 0.4, 40, 1_250, 25e4, 3e6)
    assert [plain(v) for v in values] == ["0", "1e-5", "0.002", "0.4", "40", "1,250", "250,000", "3e6"]


def test_points_lie_in_proportion():
    """x fills the width from 0 on; equal steps in y are drawn as equal steps, upwards."""
    wide, narrow = drawn([curve([0, 50, 100], [1, 2, 3])])
    for svg in (wide, narrow):
        (x0, y0), (x1, y1), (x2, y2) = points(svg)
        width = float(svg.get("viewBox").split()[2])
        assert (x0, x1, x2) == pytest.approx((LEFT, (LEFT + width - RIGHT) / 2, width - RIGHT), abs=0.06)
        assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
        assert y0 > y2
        assert svg.get("aria-label") == "what it shows"
    assert narrow.get("viewBox") == f"0 0 {NARROW[0]} {NARROW[1]}"


def test_factors_are_equal_steps_where_values_differ_much():
    svg, _ = drawn([curve([1, 2, 3], [0.01, 0.1, 1])])
    (_, y0), (_, y1), (_, y2) = points(svg)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert "logarithmic" in ET.tostring(svg, "unicode")


def test_a_gap_is_no_line():
    svg, _ = drawn([curve([1, 2, 3, 4], [1, np.nan, 3, 4])])
    assert path(svg).count("M") == 2
    assert path(svg).count("L") == 1
    assert len(list(svg.iter("circle"))) == 3


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12, 1e12])
def test_a_single_value_is_within_the_picture(value):
    svg, _ = drawn([curve([value], [value])], Axes("y", "x", level=value))
    _, _, width, height = map(float, svg.get("viewBox").split())
    ((x, y),) = points(svg)
    assert 0 <= x <= width
    assert 0 < y < height
    (dot,) = svg.iter("circle")
    assert dot.find("title").text == f"a curve {value:.4g} at {short(value)}"


def test_a_level_far_off_is_drawn_too():
    svg, _ = drawn([curve([1, 2], [50, 60])], Axes("y", "x", level=1.0))
    (line,) = (found for found in svg.iter("line") if "dashed" in found.get("class"))
    assert float(line.get("y1")) > max(y for _, y in points(svg))


def test_epochs_stand_below_images():
    svg, _ = drawn([curve([0, 100], [1, 2])], Axes("y", "images", x_per_epoch=40))
    ticks = [text for text in svg.iter("text") if text.get("text-anchor") == "middle"]
    images, epochs = ([text.text for text in ticks if text.get("class") == kind] for kind in (None, "epoch"))
    assert [float(e) * 40 for e in epochs] == pytest.approx([float(i) for i in images])


def test_long_runs_are_thinned_to_means():
    x, y = thinned(np.arange(1000.0), np.where(np.arange(1000) % 2, np.nan, 7.0), 100)
    np.testing.assert_allclose(x, np.arange(100) * 10 + 4.5)
    np.testing.assert_array_equal(y, np.full(100, 7.0))
    made = chart([curve(np.arange(100_000), np.arange(100_000))], Axes("y", "x"), "alt")
    assert len(made) < 40_000
