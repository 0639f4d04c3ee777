"""The scaling plots: each axis changes one value, and the prediction by hand."""

import json

import pytest

from benchmarks import scaling
from dit_jax.errors import UserError

CONFIG = "configs/cifar10.py:report"


def test_every_axis_has_the_base_and_changes_one_value():
    made = scaling.points(scaling.BASE, scaling.AXES, CONFIG)
    for axis in scaling.AXES:
        mine = [point for point in made if point.axis == axis]
        assert len({point.x for point in mine}) == len(mine)
        assert sum(point.settings == scaling.BASE and point.devices == 1 for point in mine) == 1
        assert all(sum(point.settings[k] != v for k, v in scaling.BASE.items()) <= 1 for point in mine)
    assert [point.x for point in made if point.axis == "tokens"] == [17, 65, 257]


@pytest.mark.parametrize(("cards", "apart"), [((), 1), (("0", "1"), 2)])
def test_the_prediction_is_the_bases_time_by_the_products(monkeypatch, cards, apart):
    """Twice the batch: twice the FLOPs, and on two GPUs half of that each; CPU devices share their cores."""
    monkeypatch.setattr(scaling.machine, "visible_cards", lambda: cards)
    cost = lambda settings, devices: scaling.cost(scaling.Point("b", 0, settings, devices), CONFIG)  # noqa: E731
    base = cost(scaling.BASE, 1)
    twice = scaling.BASE | {"train.batch_size": 2 * scaling.BASE["train.batch_size"]}
    costs = [(1, 80.0, base), (1, 90.0, cost(twice, 1)), (2, 99.0, cost(scaling.BASE, 2))]
    rows = [{"devices": devices, "step_ms": {"median": ms}, "flops": of} for devices, ms, of in costs]
    scaling.predict(rows, base)
    assert [row["predicted_ms"] for row in rows] == pytest.approx([80, 160, 80 / apart])


def test_a_picture_is_drawn(tmp_path):
    spread = {"median": 2.0, "min": 1.5, "max": 3.0}
    rows = [{"axis": a, "x": x, "step_ms": spread, "predicted_ms": 2.0} for a in ("batch", "depth") for x in (2, 1)]
    scaling.draw(rows, "title", tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_axes_measured_before_stay_unless_something_is_another(tmp_path):
    rows = [{"axis": "batch", "x": 1}, {"axis": "depth", "x": 2}]
    about = {"commit": "c", "base": scaling.BASE, "config": CONFIG, "processor": "p", "gpus": []}
    (tmp_path / "scaling.json").write_text(json.dumps({**about, "rows": rows}))
    assert scaling.kept(tmp_path, ["depth"], about) == rows[:1]
    assert scaling.kept(tmp_path / "none", ["depth"], about) == []
    for other in about:
        assert scaling.kept(tmp_path, ["depth"], about | {other: "x"}) == []


def test_an_axis_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--axes=batch,batches: 'batches' is not known; use any of batch, tokens"):
        scaling.main(["--axes=batch,batches", f"--out={tmp_path}"])
