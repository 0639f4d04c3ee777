"""A step whose loss or gradient is not finite changes only counters, on any mesh and with calls of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.errors import UserError
from dit_jax.training import guard
from dit_jax.training.state import TrainState
from tests.training.toy import Trainer, apply, init_params

STEPS = 12


def network(params, x_t, t_B, labels_B, keys_B):
    """Adds `params["poison"]` (0 or NaN) to the toy's output for images at the last timestep, 19 of 0..19."""
    poison = jax.lax.stop_gradient(params["poison"])
    return apply(params, x_t, t_B, labels_B, keys_B) + jnp.where(t_B == 19, poison, 0.0)[:, None, None, None]


def trainer(poison, devices=1):
    return Trainer(
        optax.adamw(0.01, weight_decay=0.0), devices, network, lambda: init_params() | {"poison": jnp.float32(poison)}
    )


def state_of(trainer):
    state = jax.tree.map(np.array, trainer.state)
    for tree in (state.params, state.ema_params):
        tree.pop("poison")
    return state


def without_the_steps(bad):
    """Returns the state after STEPS healthy steps, of which those in `bad` were undone by hand."""
    healthy = trainer(0.0)
    for step in range(1, STEPS + 1):
        before = jax.tree.map(jnp.copy, healthy.state)
        healthy.run(1)
        if step in bad:
            healthy.state = TrainState(healthy.state.step, before.params, before.ema_params, before.opt_state)
    return state_of(healthy)


def bad_steps(devices=1):
    """Returns the numbers of the bad steps, found with one step per call."""
    poisoned, found = trainer(np.nan, devices), []
    for step in range(1, STEPS + 1):
        before = float(poisoned.sums["bad_steps"])
        poisoned.run(1)
        found += [step] if poisoned.sums["bad_steps"] > before else []
    return found


@pytest.fixture(scope="module")
def bad():
    found = bad_steps()
    assert 0 < len(found) < STEPS  # 8 images, 20 timesteps: a third of the steps (1 - 0.95^8 = 0.34)
    return found


@pytest.mark.parametrize("devices", [1, 8])
def test_a_bad_step_is_left_out_to_the_bit_on_all_devices(devices, bad):
    poisoned = trainer(np.nan, devices).run(4, 3, 4, 1)
    sums = jax.device_get(poisoned.sums)
    assert sums["bad_steps"] == len(bad)
    assert sums["steps"] == STEPS - len(bad)
    assert sums["last_bad_step"] == bad[-1]
    np.testing.assert_array_equal(sums["bad_quarters"], [0, 0, 0, len(bad)])  # t = 19 of 0..19: the most noise
    assert np.isfinite(sums["loss"])
    assert sums["quarter_count"].sum() == 8 * sums["steps"]
    exact = devices == 1
    compare = np.testing.assert_array_equal if exact else lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6)
    jax.tree.map(compare, state_of(poisoned), without_the_steps(bad))


def test_healthy_steps_are_not_counted():
    sums = jax.device_get(trainer(0.0).run(4, 3).sums)
    assert sums["bad_steps"] == sums["longest_bad_run"] == sums["bad_quarters"].sum() == 0
    guard.check(sums, 1)


@pytest.mark.medium
def test_a_gradient_that_is_not_finite_where_the_loss_is():
    def root(params, x_t, t_B, labels_B, keys_B):
        rooted = jnp.sqrt(jnp.square(params["bias"])).sum()  # d|b|/db at 0 is NaN
        return apply(params, x_t, t_B, labels_B, keys_B) + rooted

    poisoned = Trainer(optax.sgd(0.1), network=root)
    before = jax.tree.map(np.array, poisoned.state.params)
    poisoned.run(3)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, poisoned.state.params))
    assert int(poisoned.state.step) == 3
    with pytest.raises(UserError, match=r"^3 steps in a row .* up to step 3, in the gradient alone; train.max_bad_ste"):
        guard.check(poisoned.sums, 3)


@pytest.mark.parametrize("good", [True, False])
def test_the_select_of_other_devices_is_the_branch_of_cpus(good):
    old = TrainState(jnp.int32(3), {"w": jnp.arange(2.0)}, {"w": jnp.ones(2)}, (jnp.int32(3),))
    new = TrainState(jnp.int32(4), {"w": jnp.full(2, 7.0)}, {"w": jnp.zeros(2)}, (jnp.int32(4),))
    expected = new if good else TrainState(jnp.int32(4), old.params, old.ema_params, old.opt_state)
    for take in (guard.take, guard.select):
        found = jax.jit(lambda old, take=take: take(jnp.asarray(good), lambda _: new, old))(old)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def run_lengths(pattern, before=0):
    """Returns the (current, longest) run of bad steps after steps that were bad (x) or good (.)."""
    sums = {"steps": jnp.zeros(())} | guard.zero_counts(before)
    for i, letter in enumerate(pattern):
        good = jnp.asarray(letter == ".")
        metrics = {"steps": jnp.ones(()), "quarter_loss": jnp.zeros(4)}
        sums |= {"quarter_loss": jnp.zeros(4)}
        sums = guard.add(sums, guard.tally(good, metrics), jnp.int32(i + 1))
    return int(sums["bad_run"]), int(sums["longest_bad_run"])


def test_bad_steps_in_a_row_by_hand():
    assert run_lengths("..x.xx..") == (0, 2)
    assert run_lengths("x..xxx") == (3, 3)
    assert run_lengths("") == (0, 0)
    assert run_lengths("xx.", before=2) == (0, 4)  # a run that began before the last log point
    assert run_lengths(".x", before=2) == (1, 2)


def test_weights_that_overflowed_are_told():
    good = TrainState(jnp.int32(1234), {"w": jnp.ones(3)}, {"w": jnp.ones(3)}, (jnp.int32(3),))
    guard.check_state(good)
    for field in ("params", "ema_params"):
        bad = TrainState(**vars(good) | {field: {"w": jnp.array([1.0, jnp.inf, 0.0])}})
        with pytest.raises(UserError, match="weights at step 1,234 are not finite, and are not saved"):
            guard.check_state(bad)


def test_advice_is_of_what_is_trained(caplog):
    """The autoencoder sees no noise, though its losses are counted in the first quarter; only `train` has a dtype."""
    sums = {"steps": jnp.zeros(())} | guard.zero_counts(3)
    sums |= {"bad_steps": jnp.float32(3), "last_bad_step": jnp.int32(7), "bad_quarters": jnp.array([3.0, 0, 0, 0])}
    noise, finite = ", with noise of quarter 1 of 4", "; the checkpoints hold finite weights"
    for section, where, fix in (
        ("train", noise, "optimizer.learning_rate, or use model.dtype=float32"),
        ("classifier", noise, "classifier.learning_rate"),
        ("autoencoder", "", "autoencoder.learning_rate"),
    ):
        with pytest.raises(UserError) as error:
            guard.check(sums, 3, section)
        assert str(error.value).endswith(f"(3 up to step 7{where}; train.max_bad_steps=3): lower {fix}{finite}")
        bad = TrainState(jnp.int32(9), {"w": jnp.array([jnp.inf])}, {"w": jnp.ones(1)}, (jnp.int32(3),))
        with pytest.raises(UserError, match=f"not saved: lower {fix.split(',')[0]}$"):
            guard.check_state(bad, section)
        guard.warn(jax.device_get(sums), section)
        assert caplog.messages[-1].endswith(f"not finite: 3 up to step 7{where}")
