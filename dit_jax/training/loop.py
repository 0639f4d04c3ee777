"""The training loop: dispatches train steps and, when due, logs, samples, evaluates and saves. It computes nothing.

Between those points the host reads only the step that the previous dispatch reached, so one dispatch is always in
flight while the next is prepared. Why a run should end early is not the loop's concern: it asks once per dispatch, and
saves where it ends.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dit_jax.training import guard
from dit_jax.training.state import TrainState
from dit_jax.training.step import CallResult, Sums, zero_sums

Row = dict[str, float]
Feed = Callable[[int, int], tuple[Any, Any]]  # (step, stop) -> (images, labels) for that call


@dataclass(frozen=True)
class Pace:
    """How often things happen, in steps; 0 means never."""

    steps: int
    steps_per_call: int
    log_every: int
    checkpoint_every: int
    sample_every: int
    max_bad_steps: int  # this many in a row, skipped as not finite, end the run
    evaluate_every: int = 0
    section: str = "train"  # of the config, which sets the learning rate

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` at which the loop must return to the host."""
        marks = (self.log_every, self.checkpoint_every, self.sample_every, self.evaluate_every)
        stops = [(step // every + 1) * every for every in marks if every]
        return min(self.steps, step + self.steps_per_call, *stops)

    def due(self, step: int, every: int) -> bool:
        """Returns whether something that happens every `every` steps, and at the end, happens now."""
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclass(frozen=True)
class Hooks:
    """The loop's callbacks: `log(step, row)`, `save(state, row)`, `draw(step, state)`, `progress(step, loss)`, `stop`.

    `evaluate(step, state)` comes before the save that belongs to it; a resumed run also calls it at its first step.
    """

    log: Callable[[int, Row], None]
    save: Callable[[TrainState, Mapping[str, Any]], None]
    draw: Callable[[int, TrainState], None]
    progress: Callable[[int, float | None], None]
    stop: Callable[[], bool]  # whether to end here; must agree in all processes
    evaluate: Callable[[int, TrainState], None] = lambda step, state: None


def summarize(sums: Sums, seconds: float, batch_size: int, section: str = "train") -> Row:
    """Returns the means over a window of steps, read from the devices; a mean of nothing is NaN.

    Skipped steps count in `bad_steps` and in the speed; if there are any, the row has `last_bad_step` and `bad_q*` too.
    """
    host = jax.device_get(sums)
    guard.warn(host, section)
    with np.errstate(invalid="ignore"):
        row = {name: float(host[name] / host["steps"]) for name in ("loss", "grad_norm")}
        quarters = host["quarter_loss"] / host["quarter_count"]
    row |= {f"loss_q{i + 1}": float(value) for i, value in enumerate(quarters)}
    row |= {"images_per_s": float(host["steps"] + host["bad_steps"]) * batch_size / seconds}
    row["bad_steps"] = float(host["bad_steps"])
    if row["bad_steps"]:
        row["last_bad_step"] = float(host["last_bad_step"])
        row |= {f"bad_q{i + 1}": float(value) for i, value in enumerate(host["bad_quarters"])}
    return row


def run(
    call: Callable[..., CallResult],
    state: TrainState,
    feed: Feed,
    pace: Pace,
    batch_size: int,
    hooks: Hooks,
) -> int:
    """Trains from `state.step` to `pace.steps`. `call` is from `step.make_train_call`; `state` is donated to it.

    `feed` supplies the data of the next call while one is in flight. The first calls have 1, 1, 2, 4, ... steps, so
    that with slow steps neither the first sign of progress nor SIGTERM waits for `pace.steps_per_call` of them.

    Returns the last step, which is saved; it is less than `pace.steps` if `hooks.stop` ended the run.

    Raises:
      UserError: `pace.max_bad_steps` steps in a row, or the weights, were not finite; nothing is saved then.
    """
    first = step = int(state.step)
    row, running = {}, None
    if step and pace.due(step, pace.evaluate_every):
        hooks.evaluate(step, state)
    sums, since = zero_sums(), time.perf_counter()
    while step < pace.steps and not hooks.stop():
        stop = min(pace.next_stop(step), step + max(1, step - first))
        state, sums, reached = call(state, sums, *feed(step, stop), np.int32(stop - step))
        if running is not None:
            hooks.progress(int(running), None)  # waits for the previous call while this one runs
        step, running = stop, reached
        if pace.due(step, pace.log_every):
            jax.block_until_ready(sums)
            row = summarize(sums, time.perf_counter() - since, batch_size, pace.section)
            hooks.log(step, row)
            hooks.progress(step, row["loss"])
            guard.check(sums, pace.max_bad_steps, pace.section)
            sums, since, running = zero_sums(int(sums["bad_run"])), time.perf_counter(), None
        if pace.due(step, pace.evaluate_every):
            guard.check_state(state, pace.section)
            since += pause(hooks.evaluate, step, state)
            save(state, sums, row, pace, hooks)
        elif pace.due(step, pace.checkpoint_every):
            save(state, sums, row, pace, hooks)
        if pace.due(step, pace.sample_every):
            since += pause(hooks.draw, step, state)
    if step < pace.steps:
        save(state, sums, row, pace, hooks)
    return step


def pause(work: Callable[[int, TrainState], None], step: int, state: TrainState) -> float:
    """Does `work` once the state is computed; returns its seconds, which do not count as training."""
    jax.block_until_ready(state)
    start = time.perf_counter()
    work(step, state)
    return time.perf_counter() - start


def save(state: TrainState, sums: Sums, row: Row, pace: Pace, hooks: Hooks) -> None:
    """Saves a finite state; otherwise ends the run by a UserError."""
    guard.check(sums, pace.max_bad_steps, pace.section)
    guard.check_state(state, pace.section)
    hooks.save(state, row)
