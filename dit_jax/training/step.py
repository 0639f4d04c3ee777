"""The train step: one per-device function under `shard_map`, many steps in one dispatch.

Every draw is keyed by (seed, step, position in the global batch), so the losses and weights are those of one device
whatever the mesh.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dit_jax.data import pipeline
from dit_jax.diffusion import objective
from dit_jax.diffusion.schedule import Schedule
from dit_jax.training import guard, layout, sharding
from dit_jax.training.layout import Axes
from dit_jax.training.state import Params, TrainState, ema_rate, update_ema

Sums = dict[str, jax.Array]  # metrics summed over steps, on the devices until a log point
CallResult = tuple[TrainState, Sums, jax.Array]
LossAndQuarters = tuple[jax.Array, tuple[jax.Array, jax.Array]]
Loss = Callable[..., LossAndQuarters]  # such as `batch_loss`


class Batch(NamedTuple):
    """A device's share of a step's images [B, H, W, C], or latents, with their labels.

    keys_B: that from which each image draws; index_B: its place in the global batch.
    """

    x_0: jax.Array
    labels_B: jax.Array
    keys_B: jax.Array
    index_B: jax.Array


@dataclass(frozen=True)
class Recipe:
    """What a step does to a batch, besides the network and the optimizer."""

    schedule: Schedule
    prediction: str
    timestep_sampling: str
    logit_mean: float
    logit_std: float
    stratified_timesteps: bool
    loss_weights: np.ndarray  # [T]
    label_dropout: float
    null_class: int
    flip: bool
    batch_size: int
    microbatches: int  # a device's images go through the network in so many parts
    steps_per_call: int
    ema_half_life: float
    ema_ramp: float


def zero_sums(bad_run: int = 0) -> Sums:
    """The metrics of no step at all, after `bad_run` steps in a row that were left out (see guard.py)."""
    scalars = {name: jnp.zeros(()) for name in ("steps", "loss", "grad_norm")}
    quarters = {name: jnp.zeros(objective.QUARTERS) for name in ("quarter_loss", "quarter_count")}
    return scalars | quarters | guard.zero_counts(bad_run)


def batch_loss(params: Params, apply: Callable[..., jax.Array], recipe: Recipe, batch: Batch) -> LossAndQuarters:
    """Mean weighted loss of a device's images, and (sums, counts) of the unweighted one by noise quarter."""
    T, x_0 = recipe.schedule.num_steps, batch.x_0
    draw = jax.vmap(partial(jax.random.split, num=5))(batch.keys_B)
    if recipe.flip:
        x_0 = pipeline.flip(x_0, draw[:, 0])
    u_B = jax.vmap(jax.random.uniform)(draw[:, 1])
    if recipe.stratified_timesteps:
        u_B = objective.stratify(u_B, batch.index_B, recipe.batch_size)
    t_B = objective.timestep_at(u_B, T, recipe.timestep_sampling, recipe.logit_mean, recipe.logit_std)
    eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(draw[:, 2])
    dropped_B = jax.vmap(lambda key: jax.random.bernoulli(key, recipe.label_dropout))(draw[:, 3])
    seen_B = jnp.where(dropped_B, recipe.null_class, batch.labels_B)
    predict = lambda x_t, t: apply(params, x_t, t, seen_B, draw[:, 4])  # noqa: E731
    loss_B = objective.diffusion_loss(predict, recipe.schedule, recipe.prediction, x_0, eps, t_B)
    weight_B = jnp.asarray(recipe.loss_weights, jnp.float32)[t_B]
    return (weight_B * loss_B).mean(), objective.by_quarter(loss_B, t_B, T)


def gradient(
    batch_loss: Loss, apply: Callable[..., Any], recipe: Recipe, params: Params, batch: Batch
) -> tuple[LossAndQuarters, Params]:
    """`batch_loss` and its gradient, of a device's images as they are fed, in `recipe.microbatches` parts in turn.

    The parts are equal, so the mean of their means is that of all; every image draws what it would in one.
    """

    def part(batch: Batch) -> Any:
        grad = jax.value_and_grad(batch_loss, has_aux=True)
        return grad(params, apply, recipe, batch._replace(x_0=pipeline.to_float(batch.x_0)))

    count = recipe.microbatches
    if count == 1:
        return part(batch)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, batch))
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    ((loss, quarters), grads), _ = jax.lax.scan(
        lambda total, batch: (jax.tree.map(jnp.add, total, part(batch)), None), zero, parts
    )
    return (loss / count, quarters), jax.tree.map(lambda x: x / count, grads)


def train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    key: jax.Array,
    state: TrainState,
    images: jax.Array,
    labels_B: jax.Array,
    mine: jax.Array,
    batch_loss: Loss,
    axes: Axes,
) -> tuple[TrainState, Sums]:
    """One step on a device's share of the batch, the images at the positions `mine` of it; and its metrics.

    Gradients meet in one mean over the mesh. They are taken inside `shard_map(check_vma=False)`, where `grad` sees one
    device's loss alone. `axes` are those along which the parameters are split (layout.py).
    """
    step_key = jax.random.fold_in(key, state.step)
    keys_B = jax.vmap(partial(jax.random.fold_in, step_key))(mine)
    batch = Batch(images, labels_B, keys_B, mine)
    (loss, quarters), grads = gradient(batch_loss, apply, recipe, state.params, batch)
    loss, grads = layout.mean((loss, grads), (layout.WHOLE, axes))
    quarter_loss, quarter_count = jax.lax.psum(quarters, sharding.AXIS)
    grad_norm = layout.norm(grads, axes)
    metrics = {
        "steps": jnp.ones(()),
        "loss": loss,
        "grad_norm": grad_norm,
        "quarter_loss": quarter_loss,
        "quarter_count": quarter_count,
    }
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)  # of the whole batch: all devices decide alike
    return guard.take(good, partial(update, optimizer, recipe, grads, grad_norm), state), guard.tally(good, metrics)


def update(
    optimizer: optax.GradientTransformation, recipe: Recipe, grads: Params, grad_norm: jax.Array, state: TrainState
) -> TrainState:
    """The state after a step of the optimizer and of the average, leaf by leaf: whole or shares."""
    optimizer = optax.with_extra_args_support(optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, grad_norm=grad_norm)
    params = optax.apply_updates(state.params, updates)
    rate = ema_rate(state.step, recipe.batch_size, recipe.ema_half_life, recipe.ema_ramp)
    return TrainState(state.step + 1, params, update_ema(state.ema_params, params, rate), opt_state)


def data_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(for the order of the data, for the draws of each step), of a run's key for training."""
    order_key, draw_key = jax.random.split(key)
    return order_key, draw_key


def make_train_call(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    mesh: Mesh,
    key: jax.Array,
    batch_loss: Loss = batch_loss,
    streamed: bool = False,
    where: TrainState = layout.WHOLE_STATE,
) -> Callable[..., CallResult]:
    """call(state, sums, images [n, ...], labels int32 [n], count) runs `count` steps, at most steps_per_call.

    Images (or latents, see `datasets.Split`) and labels are the whole data, or, if `streamed`, the batches of these
    steps alone: [steps_per_call, B, ...], split over the mesh along B (see feed.py). `where` tells along which axes the
    state is split (see layout.py); if it is, `apply` takes a device's shares of the parameters.

    Returns (state, sums, steps done). One compile serves every count. State and sums are donated; the third result is
    there to wait for while the next call already has them.
    """
    order_key, draw_key = data_keys(key)
    step = partial(train_step, apply, optimizer, recipe, draw_key, batch_loss=batch_loss, axes=where.params)

    def call(state: TrainState, sums: Sums, images: Any, labels: Any, count: jax.Array) -> CallResult:
        first, batch_size = state.step, recipe.batch_size
        mine = sharding.global_index(mesh, batch_size)
        if streamed:
            pick = pipeline.from_stream(first, images, labels)
        else:
            pick = pipeline.from_resident(order_key, first, recipe.steps_per_call, batch_size, mine, images, labels)

        def body(_: jax.Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
            state, sums = carry
            state, metrics = step(state, *pick(state.step), mine)
            return state, guard.add(sums, metrics, state.step)

        state, sums = jax.lax.fori_loop(0, count, body, (state, sums))
        return state, sums, state.step + 0  # a copy: the next call is given the state's own

    whole, held = sharding.REPLICATED, layout.specs(where)
    data = sharding.SPLIT_STEPS if streamed else whole
    in_specs = (held, whole, data, data, whole)
    mapped = jax.shard_map(call, mesh=mesh, in_specs=in_specs, out_specs=(held, whole, whole), check_vma=False)

    return jax.jit(mapped, donate_argnums=(0, 1))
