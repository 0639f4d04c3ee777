"""The loop's rhythm, with a call that only counts."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.training import loop
from dit_jax.training.state import TrainState


def stops(pace, step=0):
    visited = []
    while step < pace.steps:
        step = pace.next_stop(step)
        visited.append(step)
    return visited


def test_stops_by_hand():
    assert stops(loop.Pace(10, 4, 3, 5, 6)) == [3, 5, 6, 9, 10]
    assert stops(loop.Pace(10, 4, 100, 100, 0)) == [4, 8, 10]
    assert stops(loop.Pace(10, 4, 3, 5, 6), step=5) == [6, 9, 10]
    assert stops(loop.Pace(1, 1, 1, 1, 1)) == [1]


def test_no_mark_is_ever_skipped():
    rng = random.Random(0)
    for _ in range(300):
        steps, per_call, *every = (rng.randint(1, 60) for _ in range(5))
        pace = loop.Pace(steps, per_call, every[0], every[1], rng.choice([0, every[2]]))
        start = rng.randrange(steps)
        visited = stops(pace, start)
        assert visited[-1] == steps
        assert all(0 < b - a <= per_call for a, b in zip([start, *visited], visited, strict=False))
        for mark in (pace.log_every, pace.checkpoint_every, pace.sample_every):
            due = {s for s in range(start + 1, steps + 1) if mark and (s % mark == 0 or s == steps)}
            assert due == {s for s in visited if pace.due(s, mark)}


class Recorder:
    """Hooks and a training call that note the order of events. A step's loss is its number."""

    def __init__(self):
        self.events, self.rows = [], {}
        self.hooks = loop.Hooks(self.log, self.save, self.draw, self.progress)

    def call(self, state, sums, images, labels, count):
        first, count = int(state.step), int(count)
        self.events.append(f"call {first + count}")
        new = {"steps": count, "loss": sum(range(first + 1, first + count + 1)), "grad_norm": 2.0 * count}
        new |= {"quarter_loss": jnp.array([1.0, 2, 3, 0]), "quarter_count": jnp.array([2.0, 2, 2, 0])}
        sums = {name: sums[name] + new[name] for name in sums}
        return TrainState(jnp.int32(first + count), {}, {}, ()), sums, jnp.int32(first + count)

    def log(self, step, row):
        self.events.append(f"log {step}")
        self.rows[step] = row

    def save(self, state, row):
        self.events.append(f"save {int(state.step)}")

    def draw(self, step, state):
        assert step == int(state.step)
        self.events.append(f"draw {step}")

    def progress(self, step, loss):
        self.events.append(f"at {step}" + ("" if loss is None else f" {loss:g}"))


def run(pace, start=0):
    recorder = Recorder()
    state = TrainState(jnp.int32(start), {}, {}, ())
    loop.run(recorder.call, state, jnp.zeros(1), jnp.zeros(1), pace, 8, recorder.hooks)
    return recorder


def test_order_of_events():
    recorder = run(loop.Pace(8, 2, 6, 5, 4))
    # A call is under way before the loop waits for the one before it.
    assert recorder.events == [
        "call 2",
        "call 4", "at 2", "draw 4",
        "call 5", "at 4", "save 5",
        "call 6", "at 5", "log 6", "at 6 3.5",
        "call 8", "log 8", "at 8 7.5", "save 8", "draw 8",
    ]  # fmt: skip


def test_a_resumed_loop_goes_on_where_the_state_is():
    assert [e for e in run(loop.Pace(8, 2, 6, 5, 4), start=5).events if "call" in e] == ["call 6", "call 8"]
    assert run(loop.Pace(8, 2, 6, 5, 4), start=8).events == []


def test_rows_are_means_over_the_steps_since_the_last_row():
    rows = run(loop.Pace(8, 3, 4, 100, 0)).rows
    assert list(rows) == [4, 8]
    assert rows[4]["loss"] == 2.5  # of 1, 2, 3, 4
    assert rows[8]["loss"] == 6.5
    assert rows[8]["grad_norm"] == 2
    assert [rows[4][f"loss_q{q}"] for q in (1, 2, 3)] == [0.5, 1, 1.5]
    assert np.isnan(rows[4]["loss_q4"])  # no image there
    assert rows[4]["images_per_s"] > 0


def test_images_per_second():
    sums = {"steps": jnp.float32(10), "loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
    sums |= {"quarter_loss": jnp.ones(4), "quarter_count": jnp.ones(4)}
    assert loop.summarize(sums, 2.0, 16)["images_per_s"] == pytest.approx(80)
