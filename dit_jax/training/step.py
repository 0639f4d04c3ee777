"""The train step: one per-device function under `shard_map`, with many steps in one dispatch.

Every draw is keyed by (seed, step, position in the global batch), so from the same weights the loss and the gradient of
a step are those of a single device on any mesh, up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dit_jax.data import pipeline
from dit_jax.diffusion.objective import QUARTERS
from dit_jax.training import guard, layout, sharding
from dit_jax.training.layout import Axes
from dit_jax.training.state import Params, TrainState, ema_rate, update_ema

Sums = dict[str, jax.Array]  # metrics summed over steps; they stay on the devices until a log point
CallResult = tuple[TrainState, Sums, jax.Array]
LossAndQuarters = tuple[jax.Array, tuple[jax.Array, jax.Array]]


class Batch(NamedTuple):
    """A device's share of a step's images [B, H, W, C], or latents, with their labels.

    keys_B: the key from which each image draws; index_B: its position in the global batch.
    """

    x_0: jax.Array
    labels_B: jax.Array
    keys_B: jax.Array
    index_B: jax.Array


# Returns a device's mean loss, and (sums, counts) of its images' losses by noise quarter, [QUARTERS] each.
Loss = Callable[[Params, Batch], LossAndQuarters]


@dataclass(frozen=True)
class StepSettings:
    """What a train step needs to know besides the loss and the optimizer."""

    batch_size: int  # over all devices
    microbatches: int  # the parts in which a device's images go through the network
    steps_per_call: int
    ema_half_life: float  # images
    ema_ramp: float


def zero_sums(bad_run: int = 0) -> Sums:
    """Returns the sums at the start of a window of steps, after `bad_run` skipped steps in a row (see guard.py)."""
    scalars = {name: jnp.zeros(()) for name in ("steps", "loss", "grad_norm")}
    quarters = {name: jnp.zeros(QUARTERS) for name in ("quarter_loss", "quarter_count")}
    return scalars | quarters | guard.zero_counts(bad_run)


def gradient(loss: Loss, params: Params, batch: Batch, count: int) -> tuple[LossAndQuarters, Params]:
    """Returns the loss of a device's images, as fed, and its gradient, computed in `count` equal parts in turn.

    The mean of the parts' means is that of all images, and an image's draws do not depend on `count`.
    """

    def part(batch: Batch) -> Any:
        return jax.value_and_grad(loss, has_aux=True)(params, batch._replace(x_0=pipeline.to_float(batch.x_0)))

    if count == 1:
        return part(batch)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, batch))
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    ((mean, quarters), grads), _ = jax.lax.scan(
        lambda total, batch: (jax.tree.map(jnp.add, total, part(batch)), None), zero, parts
    )
    return (mean / count, quarters), jax.tree.map(lambda x: x / count, grads)


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    key: jax.Array,
    axes: Axes,
    state: TrainState,
    images: jax.Array,
    labels_B: jax.Array,
    mine: jax.Array,
) -> tuple[TrainState, Sums]:
    """Takes one step on a device's share of the batch, the images at the positions `mine`; returns its metrics too.

    Gradients are averaged over the mesh once. They are taken inside `shard_map(check_vma=False)`, where `grad` sees one
    device's loss only. `axes` are those along which the parameters are split (layout.py).
    """
    step_key = jax.random.fold_in(key, state.step)
    keys_B = jax.vmap(partial(jax.random.fold_in, step_key))(mine)
    batch = Batch(images, labels_B, keys_B, mine)
    (mean, quarters), grads = gradient(loss, state.params, batch, settings.microbatches)
    mean, grads = layout.mean((mean, grads), (layout.WHOLE, axes))
    quarter_loss, quarter_count = jax.lax.psum(quarters, sharding.AXIS)
    grad_norm = layout.norm(grads, axes)
    metrics = {
        "steps": jnp.ones(()),
        "loss": mean,
        "grad_norm": grad_norm,
        "quarter_loss": quarter_loss,
        "quarter_count": quarter_count,
    }
    good = jnp.isfinite(mean) & jnp.isfinite(grad_norm)  # both are of the whole batch, so all devices decide alike
    return guard.take(good, partial(update, optimizer, settings, grads, grad_norm), state), guard.tally(good, metrics)


def update(
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    grads: Params,
    grad_norm: jax.Array,
    state: TrainState,
) -> TrainState:
    """Returns the state after a step of the optimizer and the average; leaves may be whole or shares."""
    optimizer = optax.with_extra_args_support(optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, grad_norm=grad_norm)
    params = optax.apply_updates(state.params, updates)
    rate = ema_rate(state.step, settings.batch_size, settings.ema_half_life, settings.ema_ramp)
    return TrainState(state.step + 1, params, update_ema(state.ema_params, params, rate), opt_state)


def data_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a run's key for training into (for the order of the data, for the draws of each step)."""
    order_key, draw_key = jax.random.split(key)
    return order_key, draw_key


def make_train_call(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    mesh: Mesh,
    key: jax.Array,
    streamed: bool = False,
    where: TrainState = layout.WHOLE_STATE,
) -> Callable[..., CallResult]:
    """Returns call(state, sums, images [n, ...], labels int32 [n], count), which runs `count` <= steps_per_call steps.

    Images (or latents, see `datasets.Split`) and labels are all the data or, if `streamed`, only the batches of these
    steps: [n, B, ...] for n >= count, split over the mesh along B (see feed.py). `where` gives the axes along which the
    state is split (see layout.py); if it is, `loss` takes a device's shares of the parameters.

    The call returns (state, sums, steps done), and one compilation serves every count. State and sums are donated; the
    third result is there to wait for when the next call already has them.
    """
    order_key, draw_key = data_keys(key)
    step = partial(train_step, loss, optimizer, settings, draw_key, where.params)

    def call(state: TrainState, sums: Sums, images: Any, labels: Any, count: jax.Array) -> CallResult:
        first, batch_size = state.step, settings.batch_size
        mine = sharding.global_index(mesh, batch_size)
        if streamed:
            pick = pipeline.from_stream(first, images, labels)
        else:
            pick = pipeline.from_resident(order_key, first, settings.steps_per_call, batch_size, mine, images, labels)

        def body(_: jax.Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
            state, sums = carry
            state, metrics = step(state, *pick(state.step), mine)
            return state, guard.add(sums, metrics, state.step)

        state, sums = jax.lax.fori_loop(0, count, body, (state, sums))
        return state, sums, state.step + 0  # a copy, as the state's own is donated to the next call

    whole, held = sharding.REPLICATED, layout.specs(where)
    data = sharding.SPLIT_STEPS if streamed else whole
    in_specs = (held, whole, data, data, whole)
    mapped = jax.shard_map(call, mesh=mesh, in_specs=in_specs, out_specs=(held, whole, whole), check_vma=False)

    return jax.jit(mapped, donate_argnums=(0, 1))
