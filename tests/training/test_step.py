"""Tests the train step: the same numbers on any mesh and for any length of calls, and independent draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.data.datasets import Split
from dit_jax.training.step import data_keys, zero_sums
from tests.training.toy import OBJECTIVE, Trainer, apply


def close(a, b, rtol=1e-5):
    """Returns whether two runs have the same state and metrics up to rounding."""
    pairs = zip(jax.tree.leaves((a.state, a.sums)), jax.tree.leaves((b.state, b.sums)), strict=True)
    return all(np.allclose(x, y, rtol, atol=1e-6) for x, y in pairs)


@pytest.fixture(scope="module")
def single():
    """Seven plain SGD steps on one device; an epoch has five."""
    return Trainer(optax.sgd(0.05)).run(4, 3)


@pytest.mark.parametrize("devices", [*(pytest.param(n, marks=pytest.mark.medium) for n in (2, 4)), 8])
def test_any_number_of_devices_takes_the_same_steps(devices, single):
    assert close(Trainer(optax.sgd(0.05), devices).run(4, 3), single)


@pytest.mark.medium
def test_fifty_steps_of_adamw_on_eight_devices():
    """AdamW divides by the gradient's size, which magnifies small differences."""
    one, eight = (Trainer(optax.adamw(0.01), devices, steps_per_call=50).run(49) for devices in (1, 8))
    for trainer in (one, eight):
        trainer.sums = jax.device_put(zero_sums(), trainer.sums["loss"].sharding)
        trainer.run(1)
    assert float(eight.sums["loss"]) == pytest.approx(float(one.sums["loss"]), rel=1e-5)


def test_a_gradient_too_large_by_a_factor_would_show(single):
    assert not close(Trainer(optax.sgd(0.05 * 2)).run(4, 3), single)


@pytest.mark.parametrize("steps_per_call", [1, 7])
def test_steps_per_call_changes_nothing(steps_per_call, single):
    counts = [1] * 7 if steps_per_call == 1 else [7]
    assert close(Trainer(optax.sgd(0.05), steps_per_call=steps_per_call).run(*counts), single)


@pytest.mark.medium
@pytest.mark.parametrize(("devices", "microbatches", "shard"), [(1, 8, False), (2, 2, False), (4, 2, True)])
def test_microbatches_and_shares_change_nothing(devices, microbatches, shard, single):
    trainer = Trainer(optax.sgd(0.05), devices, shard=shard, microbatches=microbatches)
    assert close(trainer.run(4, 3), single)


@pytest.mark.medium
def test_microbatches_show_the_network_what_the_batch_does():
    parts = shown(2, 3, microbatches=2, stratified_timesteps=True)
    for ours, theirs in zip(parts, shown(1, 3, stratified_timesteps=True), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_sums_count_every_step_and_image_and_the_quarters_add_up_to_the_loss(single):
    sums = jax.device_get(single.sums)
    assert sums["steps"] == 7
    assert sums["quarter_count"].sum() == 7 * 8
    np.testing.assert_allclose(sums["quarter_loss"].sum() / 8, sums["loss"], rtol=1e-5)
    assert np.all(sums["quarter_loss"][sums["quarter_count"] > 0] > 0)
    assert int(single.state.step) == 7


@pytest.mark.medium
def test_weights_scale_the_gradient_and_the_loss_but_not_the_loss_by_noise():
    """Weight 3 at every timestep: plain SGD moves three times as far; the quarters stay as they are."""
    fresh = jax.device_get(Trainer(optax.sgd(0.01)).state.params)
    one, three = (Trainer(optax.sgd(0.01), loss_weights=np.full(20, w)).run(1) for w in (1.0, 3.0))
    move = [jax.tree.map(np.subtract, jax.device_get(trainer.state.params), fresh) for trainer in (one, three)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-3, atol=1e-6), *move)
    np.testing.assert_allclose(3 * one.sums["loss"], three.sums["loss"], rtol=1e-5)
    np.testing.assert_allclose(one.sums["quarter_loss"], three.sums["quarter_loss"], rtol=1e-5)


@pytest.mark.medium
def test_an_images_weight_is_that_of_its_timestep():
    """Weight 1 for the noisier half only: the loss is the sum of the last two quarters over the batch of 8."""
    sums = Trainer(optax.sgd(0.01), loss_weights=np.arange(20) >= 10).run(1).sums
    np.testing.assert_allclose(sums["loss"], sums["quarter_loss"][2:].sum() / 8, rtol=1e-5)
    assert sums["quarter_loss"][:2].sum() > 0


@pytest.mark.medium
def test_stratified_timesteps_are_spread_over_every_batch_on_any_mesh():
    """T = 20, batch 8: image i is in [2.5 i, 2.5 (i + 1)), on any device; each step draws anew."""
    trainers = [shown(devices, 1, stratified_timesteps=True)[1] for devices in (1, 8)]
    np.testing.assert_array_equal(*trainers)
    t = np.sort(trainers[0])
    assert (np.floor(2.5 * np.arange(8)) <= t).all()
    assert (t < 2.5 * np.arange(1, 9)).all()
    assert len({tuple(np.sort(steps)) for steps in shown(1, 4, stratified_timesteps=True)[1].reshape(4, 8)}) > 1


def test_grad_norm_is_the_length_of_a_plain_step_and_steps_differ():
    trainer = Trainer(optax.sgd(1.0))
    before = jax.device_get(trainer.state.params)
    trainer.run(1)
    moved = jax.tree.map(lambda a, b: np.sum(np.square(a - b)), before, jax.device_get(trainer.state.params))
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(moved))), trainer.sums["grad_norm"], rtol=1e-4)


def test_ema_follows_the_parameters():
    # Batch 8, ramp 0.05: after k steps the half-life is 0.4 k images, the next keeps 0.5^(8 / (0.4 k)) = 2^(-20 / k).
    trainer = Trainer(optax.sgd(0.05), ema_half_life=1e9)
    ema = np.asarray(trainer.state.params["kernel"], np.float64)
    for k in range(12):
        kernel = np.array(trainer.run(1).state.params["kernel"])
        ema = ema + (1 - (2 ** (-20 / k) if k else 0)) * (kernel - ema)
    np.testing.assert_allclose(trainer.state.ema_params["kernel"], ema, rtol=1e-5)
    assert np.abs(ema - kernel).max() > 1e-4


class Spy:
    """A network that records its inputs: (x_t, t, labels, the keys' data) of each device and step."""

    def __init__(self):
        self.seen, self.traces = [], 0

    def __call__(self, params, x_t, t_B, labels_B, keys_B):
        self.traces += 1
        shown = x_t, t_B, labels_B, jax.random.key_data(keys_B)
        jax.debug.callback(lambda *arrays: self.seen.append([np.array(a) for a in arrays]), *shown)
        return apply(params, x_t, t_B, labels_B, keys_B)


def shown(devices, steps, **changed):
    """Returns all that a network sees in `steps` steps on identical images: x_t, t, labels, keys, sorted by x_t."""
    spy = Spy()
    grey = Split(np.full((40, 8, 8, 3), 128, np.uint8), np.arange(40, dtype=np.int32) % 3)
    trainer = Trainer(optax.sgd(0.0), devices, spy, data=grey, **changed)
    jax.block_until_ready(trainer.run(steps).state)
    jax.effects_barrier()
    x, t, labels, keys = (np.concatenate(parts) for parts in zip(*spy.seen, strict=True))
    order = np.argsort(x[:, 0, 0, 0])
    return x[order], t[order], labels[order], keys[order]


@pytest.mark.medium
def test_every_image_of_every_device_and_step_has_its_own_noise():
    x, t, labels, keys = shown(8, 3)
    assert x.shape == (24, 8, 8, 3)
    flat = x.reshape(24, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(24)).max() < 0.5  # the correlation of 192 independent pairs is 0 +- 0.07
    assert len(set(t)) > 8
    assert len({tuple(key) for key in keys}) == 24  # for dropout
    # One device sees the same images, timesteps, labels and keys, also with two microbatches.
    for others in (shown(1, 3), shown(1, 3, microbatches=2)):
        for ours, theirs in zip((x, t, labels, keys), others, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.medium
def test_the_keys_for_dropout_are_those_of_no_other_draw():
    """No image contains the noise that `batch_loss` would draw from one of these keys."""
    x, t, _, keys = shown(1, 3, flip=False)
    signal, grey = OBJECTIVE.schedule.alpha[t][:, None, None, None], 128 / 127.5 - 1
    eps = (x - signal * grey) / OBJECTIVE.schedule.sigma[t][:, None, None, None]
    drawn = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 3)))(jax.random.wrap_key_data(keys))
    assert np.abs(np.corrcoef(np.reshape(eps, (24, -1)), np.reshape(drawn, (24, -1)))[:24, 24:]).max() < 0.5


def test_the_order_of_the_data_and_the_draws_of_steps_have_different_keys():
    """Epoch and step numbers are folded into them in the same way, so they must differ, also from the run's own key."""
    keys = [jax.random.key(5), *data_keys(jax.random.key(5))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


@pytest.mark.medium
def test_the_share_of_labels_that_are_dropped():
    # 100 steps of 8 images: 800 draws of probability 1/4, standard deviation 0.0153.
    _, t, labels, _ = shown(1, 100, steps_per_call=100)
    assert abs(np.mean(labels == 3) - 0.25) < 0.06
    kept = np.bincount(labels, minlength=4)[:3]
    assert kept.min() > 130  # the three classes, about 200 each
    assert t.min() == 0
    assert t.max() == 19
    assert not np.any(shown(1, 10, steps_per_call=10, label_dropout=0.0)[2] == 3)


def test_one_compile_and_no_transfer_whatever_the_count():
    spy = Spy()
    trainer = Trainer(optax.adamw(0.01), devices=8, network=spy)
    counts = [jax.device_put(np.int32(n), trainer.data[0].sharding) for n in (3, 1, 2, 4)]
    for i, count in enumerate(counts):
        with jax.transfer_guard("disallow" if i else "allow"):
            trainer.state, trainer.sums, done = trainer.call(trainer.state, trainer.sums, *trainer.data, count)
            done.block_until_ready()
    assert int(done) == 10
    assert spy.traces == 1
    with pytest.raises(Exception, match="transfer"), jax.transfer_guard("disallow"):
        trainer.call(trainer.state, trainer.sums, np.zeros((40, 8, 8, 3), np.uint8), trainer.data[1], counts[0])


def test_state_and_sums_are_donated():
    trainer = Trainer(optax.sgd(0.1))
    before, sums = trainer.state, trainer.sums
    jax.block_until_ready(trainer.run(1).state)
    assert before.params["kernel"].is_deleted()
    assert sums["loss"].is_deleted()
    assert not trainer.data[0].is_deleted()
    assert jnp.isfinite(trainer.sums["loss"])
