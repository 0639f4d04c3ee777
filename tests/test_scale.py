"""A run is the same on any number of devices, with its state replicated or sharded, with or without microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.errors import UserError
from dit_jax.jobs.train import train
from dit_jax.loading import load
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.optimizer import clip_by_norm
from dit_jax.training.step import zero_sums
from tests import tiny

CLIP = 0.1  # well below the first gradients' norm
OPTIMIZERS = {
    "sgd": lambda: optax.chain(clip_by_norm(CLIP), optax.sgd(0.5)),
    "adamw": lambda: optax.chain(clip_by_norm(CLIP), optax.adamw(1e-3)),
}
QUICK = [(8, "sgd", True), (2, "adamw", True)]
ALL = [(n, name, shard) for n in (1, 2, 4, 8) for name in OPTIMIZERS for shard in (False, True)]


def steps(devices, optimizer, count=50, **more):
    """Trains the tiny DiT; returns (the loss of step `count`, the gradient norm of the first step, the final state)."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, devices)
        settings = dict(model__depth=2, model__conditioning="adaln_zero", train__steps_per_call=50) | more
        call, state, *data = tiny.start(tiny.experiment(**settings), OPTIMIZERS[optimizer]())
    state, first, _ = call(state, zero_sums(), *data, np.int32(1))
    state, _, _ = call(state, zero_sums(), *data, np.int32(count - 2))
    state, last, _ = call(state, zero_sums(), *data, np.int32(1))
    return float(last["loss"]), float(first["grad_norm"]), jax.device_get(state)


@pytest.fixture(scope="module")
def reference():
    """Returns a function from an optimizer's name to the results of `steps` on one device, with an unsharded state."""
    made = {}
    return lambda name: made.setdefault(name, steps(1, name))


@pytest.mark.parametrize(
    ("devices", "optimizer", "shard"),
    [pytest.param(*case, marks=pytest.mark.long if case in QUICK else pytest.mark.slow) for case in ALL],
)
def test_fifty_steps_are_the_same(devices, optimizer, shard, reference):
    loss, norm, state = steps(devices, optimizer, train__shard_params=shard)
    expected_loss, expected_norm, expected = reference(optimizer)
    assert expected_norm > CLIP  # otherwise nothing would be clipped
    assert abs(loss - expected_loss) < 1e-5 * expected_loss
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    for tree in ("params", "ema_params"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), vars(state)[tree], vars(expected)[tree]
        )


@pytest.mark.long
def test_long_skips_norms_and_dropout_are_the_same_split():
    """Dropout depends on an image's place in the global batch: microbatches and recomputed blocks do not change it."""
    options = dict(model__depth=6, model__long_skips=True, model__qk_norm=True, train__dropout=0.2)
    options |= dict(model__conditioning="token")  # its blocks have an effect from the first step on
    loss, norm, state = steps(1, "sgd", 20, **options)
    undropped, _, _ = steps(1, "sgd", 20, **options | dict(train__dropout=0.0))
    assert abs(loss - undropped) > 1e-4 * loss
    split = dict(train__shard_params=True, train__microbatches=2)
    loss_of_split, norm_of_split, state_of_split = steps(2, "sgd", 20, **options, **split)
    assert loss_of_split == pytest.approx(loss, rel=1e-5)
    assert norm_of_split == pytest.approx(norm, rel=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, state_of_split.params, state.params)
    recomputed, _, _ = steps(1, "sgd", 20, **options, model__remat=True)
    assert recomputed == pytest.approx(loss, rel=1e-5)


@pytest.mark.long
def test_microbatches_with_shares_bfloat16_and_remat():
    """The reference has none of these, on one device: the difference is the rounding of bfloat16 (0.4% per number)."""
    loss, norm, _ = steps(1, "sgd", 3)
    both = dict(model__dtype="bfloat16", model__remat=True, train__shard_params=True, train__microbatches=4)
    loss_of_parts, norm_of_parts, _ = steps(2, "sgd", 3, **both)
    assert loss_of_parts == pytest.approx(loss, rel=1e-2)
    assert norm_of_parts == pytest.approx(norm, rel=2e-2)


@pytest.mark.long
def test_memory_falls_with_the_devices():
    """With six blocks and one token per image, the network takes nearly all of the memory."""
    memory = {}
    for devices in (1, 8):
        with pytest.MonkeyPatch.context() as patch:
            tiny.install(patch)
            tiny.on_devices(patch, devices)
            settings = dict(model__depth=6, model__width=128, model__patch_size=8, model__conditioning="adaln_zero")
            experiment = tiny.experiment(train__shard_params=True, train__batch_size=devices, **settings)
            state = experiment.abstract_state()
            call, image = experiment.train_call(), jax.ShapeDtypeStruct((40, 8, 8, 3), np.uint8)
        data = image, jax.ShapeDtypeStruct((40,), np.int32), jax.ShapeDtypeStruct((), np.int32)
        memory[devices] = call.lower(state, jax.eval_shape(zero_sums), *data).compile().memory_analysis()
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    # The state has four trees as large as the parameters; a device holds an eighth of each, except for the vectors.
    assert memory[1].argument_size_in_bytes > 4 * params
    assert memory[8].argument_size_in_bytes < 4 * params / 7
    assert memory[8].temp_size_in_bytes < memory[1].temp_size_in_bytes / 3
    # Gradients and shards take several eighths; the parameters are never all gathered at once.
    assert memory[8].temp_size_in_bytes < params


@pytest.mark.long
def test_a_split_run_is_watched_saved_resumed_whole_and_loaded(tmp_path, monkeypatch):
    tiny.install(monkeypatch)
    for folder, devices, shard in (("whole", 1, False), ("split", 8, True)):
        tiny.on_devices(monkeypatch, devices)
        settings = dict(train__steps=2, train__shard_params=shard, train__sample_every=2 * shard)
        train(tiny.config(**settings), tmp_path / folder, None)
    states = [restored(tmp_path / folder, monkeypatch, shard) for folder in ("whole", "split") for shard in (0, 1)]
    kernel = states[3].opt_state[1][0].mu["params"]["block_0"]["mlp"]["Dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 64)
    for a, b in ((0, 1), (2, 3)):  # one checkpoint, restored replicated and sharded
        jax.tree.map(np.testing.assert_array_equal, states[a], states[b])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    jax.tree.map(close, states[1].ema_params, states[2].ema_params)
    tiny.on_devices(monkeypatch, 2)  # resumed with a replicated state, on other devices
    train(tiny.config(train__steps=4), tmp_path / "split", None)
    run = load(tmp_path / "split", tiny.config(train__shard_params=True))
    assert run.step == 4
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(run.ema_params))
    assert run.sample(run.ema_params, jax.random.key(0), [0, 1, 2]).shape == (3, 8, 8, 3)


def restored(workdir, monkeypatch, shard):
    """Returns the state of a workdir, restored as for training on eight devices."""
    tiny.on_devices(monkeypatch, 8)
    experiment = tiny.experiment(train__shard_params=bool(shard))
    with Checkpointer(workdir, 3, read_only=True) as checkpointer:
        state = checkpointer.restore(experiment.abstract_state())
    assert jnp.isfinite(state.params["params"]["final"]["kernel"]).all()
    return state


def test_a_split_that_saves_nothing_is_refused(monkeypatch):
    """Width 16 and its multiples are not divisible by 7."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 7)
    with pytest.raises(UserError, match=r"^train.shard_params=True: the sizes .* are not divisible by 7 devices"):
        tiny.experiment(train__shard_params=True, train__batch_size=7).check_devices()
