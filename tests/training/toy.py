"""Training calls of a network with three parameter arrays, which compile in a second and do not depend on any model."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.schedule import linear
from dit_jax.training import layout, sharding
from dit_jax.training.diffusion import Objective, batch_loss
from dit_jax.training.state import create
from dit_jax.training.step import StepSettings, make_train_call, zero_sums
from tests import tiny

OBJECTIVE = Objective(
    schedule=linear(20, 0.01, 0.3),
    prediction="eps",
    timestep_sampling="uniform",
    logit_mean=0.0,
    logit_std=1.0,
    stratified_timesteps=False,
    loss_weights=np.ones(20),
    label_dropout=0.25,
    null_class=3,
    flip=True,
    batch_size=8,
)
SETTINGS = StepSettings(batch_size=8, microbatches=1, steps_per_call=4, ema_half_life=30.0, ema_ramp=0.05)


def init_params():
    return {"kernel": jnp.eye(3) * 0.5, "embedding": jnp.full((4, 3), 0.1, jnp.float32), "bias": jnp.zeros(3)}


def apply(params, x_t, t_B, labels_B, keys_B):
    shift_BC = params["embedding"][labels_B] + params["bias"][None] * t_B[:, None]
    return jnp.einsum("bhwc,cd->bhwd", x_t, params["kernel"]) + shift_BC[:, None, None]


class Trainer:
    """A training run from step 0, whose calls are made by `run`."""

    def __init__(self, optimizer, devices=1, network=apply, params=init_params, data=None, shard=False, **changed):
        """`changed` are fields of `OBJECTIVE` or `SETTINGS`.

        With `shard`, the state is split over the devices, and the parameters are gathered before the network sees them.
        """
        assert all(hasattr(OBJECTIVE, name) or hasattr(SETTINGS, name) for name in changed)
        mesh, where = tiny.mesh(devices), layout.WHOLE_STATE
        fresh, of_whole = lambda: create(params, optimizer), network
        if shard:
            where = layout.split(jax.eval_shape(fresh), devices)
            network = lambda shares, *inputs: of_whole(layout.gather(shares, where.params), *inputs)  # noqa: E731
        objective, settings = (
            dataclasses.replace(plain, **{name: value for name, value in changed.items() if hasattr(plain, name)})
            for plain in (OBJECTIVE, SETTINGS)
        )
        loss = partial(batch_loss, network, objective)
        self.call = make_train_call(loss, optimizer, settings, mesh, jax.random.key(5), where=where)
        self.data = [sharding.put_replicated(array, mesh) for array in data or tiny.split()]
        self.state = jax.jit(fresh, out_shardings=layout.shardings(where, mesh))()
        self.sums = jax.device_put(zero_sums(), sharding.replicated(mesh))

    def run(self, *counts):
        for count in counts:
            self.state, self.sums, _ = self.call(self.state, self.sums, *self.data, jnp.int32(count))
        return self
