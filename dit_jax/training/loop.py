"""The loop: dispatches train steps and, at their steps, logs, samples and saves. It computes nothing itself.

The host reads from the devices at log points alone. One dispatch is always in flight while the next is prepared.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dit_jax.training.state import TrainState
from dit_jax.training.step import CallResult, Sums, zero_sums

Row = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """When things happen, in steps; 0 is never."""

    steps: int
    steps_per_call: int
    log_every: int
    checkpoint_every: int
    sample_every: int

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which the loop must return to the host."""
        marks = (self.log_every, self.checkpoint_every, self.sample_every)
        stops = [(step // every + 1) * every for every in marks if every]
        return min(self.steps, step + self.steps_per_call, *stops)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: `log(step, row)`, `save(state, row)`, `draw(step, state)`, and `progress(step, loss)`."""

    log: Callable[[int, Row], None]
    save: Callable[[TrainState, Mapping[str, Any]], None]
    draw: Callable[[int, TrainState], None]
    progress: Callable[[int, float | None], None]


def summarize(sums: Sums, seconds: float, batch_size: int) -> Row:
    """Means of what a window of steps summed up; reads from the devices. No image in a quarter gives NaN there."""
    host = jax.device_get(sums)
    steps = float(host["steps"])
    with np.errstate(invalid="ignore"):
        quarters = host["quarter_loss"] / host["quarter_count"]
    row = {name: float(host[name]) / steps for name in ("loss", "grad_norm")}
    row |= {f"loss_q{i + 1}": float(value) for i, value in enumerate(quarters)}
    return row | {"images_per_s": steps * batch_size / seconds}


def run(
    call: Callable[..., CallResult],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    pace: Pace,
    batch_size: int,
    hooks: Hooks,
) -> None:
    """Trains from `state.step` to `pace.steps`. `call` is `step.make_train_call`'s; `state` is donated to it."""
    step, row, running = int(state.step), {}, None
    sums, since = zero_sums(), time.perf_counter()
    while step < pace.steps:
        stop = pace.next_stop(step)
        state, sums, reached = call(state, sums, images, labels, np.int32(stop - step))
        if running is not None:
            hooks.progress(int(running), None)  # waits for the call before; this one runs meanwhile
        step, running = stop, reached
        if pace.due(step, pace.log_every):
            jax.block_until_ready(sums)
            row = summarize(sums, time.perf_counter() - since, batch_size)
            hooks.log(step, row)
            hooks.progress(step, row["loss"])
            sums, since, running = zero_sums(), time.perf_counter(), None
        if pace.due(step, pace.checkpoint_every):
            hooks.save(state, row)
        if pace.due(step, pace.sample_every):
            jax.block_until_ready(state)
            paused = time.perf_counter()
            hooks.draw(step, state)
            since += time.perf_counter() - paused
