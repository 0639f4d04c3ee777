"""Tests what the loop does and when, with a training call that only counts."""

import dataclasses
import random
from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.training import loop
from dit_jax.training.state import TrainState
from dit_jax.training.step import zero_sums

Pace = partial(loop.Pace, max_bad_steps=3)


def stops(pace, step=0):
    visited = []
    while step < pace.steps:
        step = pace.next_stop(step)
        visited.append(step)
    return visited


def test_stops_by_hand():
    assert stops(Pace(10, 4, 3, 5, 6)) == [3, 5, 6, 9, 10]
    assert stops(Pace(10, 4, 100, 100, 0)) == [4, 8, 10]
    assert stops(Pace(10, 4, 3, 5, 6), step=5) == [6, 9, 10]
    assert stops(Pace(1, 1, 1, 1, 1)) == [1]


def test_no_mark_is_ever_skipped():
    rng = random.Random(0)
    for _ in range(300):
        steps, per_call, *every = (rng.randint(1, 60) for _ in range(5))
        pace = Pace(steps, per_call, every[0], every[1], rng.choice([0, every[2]]))
        start = rng.randrange(steps)
        visited = stops(pace, start)
        assert visited[-1] == steps
        assert all(0 < b - a <= per_call for a, b in zip([start, *visited], visited, strict=False))
        for mark in (pace.log_every, pace.checkpoint_every, pace.sample_every):
            due = {s for s in range(start + 1, steps + 1) if mark and (s % mark == 0 or s == steps)}
            assert due == {s for s in visited if pace.due(s, mark)}


class Recorder:
    """Hooks and a training call that record the order of events. A step's loss is its number."""

    def __init__(self):
        self.events, self.rows = [], {}
        self.hooks = loop.Hooks(self.log, self.save, self.draw, self.progress, lambda: False, self.evaluate)

    def call(self, state, sums, images, labels, count):
        first, count = int(state.step), int(count)
        self.events.append(f"call {first + count}")
        new = {"steps": count, "loss": sum(range(first + 1, first + count + 1)), "grad_norm": 2.0 * count}
        new |= {"quarter_loss": jnp.array([1.0, 2, 3, 0]), "quarter_count": jnp.array([2.0, 2, 2, 0])}
        sums = sums | {name: sums[name] + new[name] for name in new}
        return TrainState(jnp.int32(first + count), {}, {}, ()), sums, jnp.int32(first + count)

    def log(self, step, row):
        self.events.append(f"log {step}")
        self.rows[step] = row

    def save(self, state, row):
        self.events.append(f"save {int(state.step)}")

    def draw(self, step, state):
        assert step == int(state.step)
        self.events.append(f"draw {step}")

    def evaluate(self, step, state):
        self.events.append(f"evaluate {step}")

    def progress(self, step, loss):
        self.events.append(f"at {step}" + ("" if loss is None else f" {loss:g}"))


def feed(step, stop):
    return jnp.zeros(1), jnp.zeros(1)


def run(pace, start=0):
    recorder = Recorder()
    state = TrainState(jnp.int32(start), {}, {}, ())
    loop.run(recorder.call, state, feed, pace, 8, recorder.hooks)
    return recorder


def test_order_of_events():
    recorder = run(Pace(8, 2, 6, 5, 4))
    # Each call is dispatched before the loop waits for the previous one.
    assert recorder.events == [
        "call 1",
        "call 2", "at 1",
        "call 4", "at 2", "draw 4",
        "call 5", "at 4", "save 5",
        "call 6", "at 5", "log 6", "at 6 3.5",
        "call 8", "log 8", "at 8 7.5", "save 8", "draw 8",
    ]  # fmt: skip


def test_a_resumed_loop_goes_on_where_the_state_is():
    assert [e for e in run(Pace(8, 2, 6, 5, 4), start=5).events if "call" in e] == ["call 6", "call 7", "call 8"]
    assert run(Pace(8, 2, 6, 5, 4), start=8).events == []


@pytest.mark.parametrize(
    ("start", "events"),
    [
        (6, ["evaluate 6"]),
        (4, ["evaluate 4", "call 5", "call 6", "evaluate 6"]),
        (3, ["call 4", "evaluate 4", "call 5", "call 6", "evaluate 6"]),
        (0, ["call 1", "call 2", "call 3", "call 4", "evaluate 4", "call 5", "call 6", "evaluate 6"]),
    ],
)
def test_a_resumed_run_asks_first_for_the_evaluation_of_its_first_step(start, events):
    """It may have been postponed. With one every four steps and one at the end, none is due at steps 3 and 0."""
    found = run(Pace(6, 1, 100, 100, 0, evaluate_every=4), start).events
    assert [event for event in found if event.startswith(("call", "evaluate"))] == events


def test_rows_are_means_over_the_steps_since_the_last_row():
    rows = run(Pace(8, 3, 4, 100, 0)).rows
    assert list(rows) == [4, 8]
    assert rows[4]["loss"] == 2.5  # the mean of 1, 2, 3, 4
    assert rows[8]["loss"] == 6.5
    assert rows[8]["grad_norm"] == 2
    assert [rows[4][f"loss_q{q}"] for q in (1, 2, 3)] == [0.5, 1, 1.5]
    assert np.isnan(rows[4]["loss_q4"])  # no image in that quarter
    assert rows[4]["images_per_s"] > 0


def test_images_per_second():
    sums = zero_sums() | {"steps": jnp.float32(10), "loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
    sums |= {"quarter_loss": jnp.ones(4), "quarter_count": jnp.ones(4)}
    assert loop.summarize(sums, 2.0, 16)["images_per_s"] == pytest.approx(80)


def test_a_run_that_is_asked_to_end_saves_where_it_is():
    recorder, asked = Recorder(), []
    hooks = dataclasses.replace(recorder.hooks, stop=lambda: asked.append(1) or len(asked) > 2)
    state = TrainState(jnp.int32(0), {}, {}, ())
    assert loop.run(recorder.call, state, feed, Pace(8, 2, 6, 5, 4), 8, hooks) == 2
    # `stop` is asked before each dispatch: the first two calls are finished, the third is not begun.
    assert recorder.events == ["call 1", "call 2", "at 1", "save 2"]


def test_the_first_calls_are_short():
    """So that slow steps soon show progress and speed; each call is at most as long as all calls before it."""
    for start, reached in ((0, [1, 2, 4, 8, 16, 32, 64, 96, 100]), (7, [8, 9, 11, 15, 23, 39, 71, 100])):
        events = run(Pace(100, 32, 1000, 1000, 0), start).events
        assert [event for event in events if "call" in event] == [f"call {step}" for step in reached]


class Lazy:
    """A sum that the devices are still computing: the first wait for it takes four seconds of a clock."""

    def __init__(self, value, clock):
        self.value, self.clock = value, clock

    def block_until_ready(self):
        self.clock.now, self.clock = self.clock.now + 4, SimpleNamespace(now=0)

    def __array__(self, *_, **__):
        self.block_until_ready()
        return np.asarray(self.value)


class Timed(Recorder):
    """A recorder whose calls take four seconds, counted when first waited for; drawing takes 50, evaluating 300."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.hooks = dataclasses.replace(self.hooks, evaluate=lambda step, state: self.spend(300))

    def spend(self, seconds):
        self.clock.now += seconds

    def call(self, *given):
        state, sums, reached = super().call(*given)
        return state, sums | {"loss": Lazy(sums["loss"], self.clock)}, reached

    def draw(self, step, state):
        self.spend(50)


def test_the_speed_is_of_training_alone_and_of_work_that_is_done(monkeypatch):
    """A call takes one step of eight images in four seconds: two images per second in every window."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    recorder, state = Timed(clock), TrainState(jnp.int32(0), {}, {}, ())
    loop.run(recorder.call, state, feed, Pace(4, 1, 1, 100, 2, evaluate_every=3), 8, recorder.hooks)
    assert [row["images_per_s"] for row in recorder.rows.values()] == [2, 2, 2, 2]
    assert clock.now == 1000 + 4 * 4 + 2 * 50 + 2 * 300


class Failing(Recorder):
    """A recorder in which no step from 4 on is finite."""

    def call(self, state, sums, *rest):
        first, before = int(state.step), sums
        state, sums, reached = super().call(state, sums, *rest)
        bad = int(reached) - max(first, 3)
        if bad > 0:
            run = jnp.int32(before["bad_run"] + bad)
            sums |= {"bad_steps": before["bad_steps"] + bad, "bad_run": run, "longest_bad_run": run}
            sums |= {"last_bad_step": reached}
        return state, sums, reached


@pytest.mark.parametrize(
    ("pace", "events"),
    [
        (Pace(20, 1, 2, 5, 0), ["log 2", "log 4", "save 5", "log 6"]),  # the run of 3 spans log points
        (Pace(20, 1, 100, 2, 0), ["save 2", "save 4"]),  # step 6 is the third, and is not saved
        (Pace(20, 1, 100, 3, 0), ["save 3"]),
    ],
)
def test_a_run_ends_after_so_many_bad_steps_in_a_row_and_saves_no_more(pace, events):
    recorder = Failing()
    state = TrainState(jnp.int32(0), {}, {}, ())
    with pytest.raises(UserError, match=r"^3 steps in a row .* train.max_bad_steps=3.: lower"):
        loop.run(recorder.call, state, feed, pace, 8, recorder.hooks)
    assert [event for event in recorder.events if event.startswith(("log", "save"))] == events


class Overflowing(Recorder):
    """A recorder whose weights are infinite from step 3 on, though every loss and gradient is finite."""

    def call(self, *given):
        state, sums, reached = super().call(*given)
        weight = jnp.float32(jnp.inf if int(reached) > 2 else 1)
        return dataclasses.replace(state, params={"w": weight}), sums, reached


@pytest.mark.parametrize(
    ("pace", "events"),
    [
        (Pace(8, 1, 100, 2, 0), ["save 2"]),
        (Pace(8, 1, 100, 8, 0, evaluate_every=2), ["evaluate 2", "save 2"]),
    ],
)
def test_weights_that_overflowed_are_neither_saved_nor_evaluated(pace, events):
    recorder = Overflowing()
    with pytest.raises(UserError, match="step 4 "):
        loop.run(recorder.call, TrainState(jnp.int32(0), {}, {}, ()), feed, pace, 8, recorder.hooks)
    assert [event for event in recorder.events if event.startswith(("evaluate", "save"))] == events


def test_a_row_tells_of_steps_left_out():
    sums = zero_sums() | {"steps": jnp.float32(2), "loss": jnp.float32(3), "bad_steps": jnp.float32(6)}
    sums |= {"last_bad_step": jnp.int32(77), "bad_quarters": jnp.array([0.0, 1, 5, 0])}
    row = loop.summarize(sums, 2.0, 16)
    assert row["loss"] == 1.5
    assert row["images_per_s"] == 64  # the devices did all 8 steps
    assert (row["bad_steps"], row["last_bad_step"], row["bad_q3"]) == (6, 77, 5)
    assert np.isnan(loop.summarize(zero_sums() | {"bad_steps": jnp.float32(6)}, 2.0, 16)["loss"])
