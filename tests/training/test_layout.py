"""Tests which leaves are split, and the gradients and norms computed from shares, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dit_jax.errors import UserError
from dit_jax.training import layout, sharding
from dit_jax.training.layout import WHOLE
from tests import tiny
from tests.training.toy import Trainer, apply, init_params


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
    ("sizes", "parts", "axis"),
    [
        ((16, 8), 8, 0),
        ((11, 8), 8, 1),  # a class table: ten classes and "no class"
        ((3, 3, 64, 16), 8, 2),
        ((11, 9), 8, WHOLE),
        ((8,), 8, WHOLE),  # a vector
        ((), 8, WHOLE),
        ((16, 8), 1, WHOLE),
    ],
)
def test_the_first_axis_of_a_matrix_that_divides(sizes, parts, axis):
    assert layout.split({"a": shape(*sizes)}, parts) == {"a": axis}


def test_specs_and_share():
    tree, axes = {"a": shape(16, 8), "b": shape(11, 8), "c": shape(20)}, {"a": 0, "b": 1, "c": WHOLE}
    assert layout.specs(axes) == {"a": P("data"), "b": P(None, "data"), "c": P()}
    assert layout.split_share(tree, axes) == pytest.approx((128 + 88) / 236)
    layout.check(tree, axes, tiny.mesh(8))
    with pytest.raises(UserError, match=r"^train.shard_params=True: the sizes .* 8 devices; .* model.width, or False$"):
        layout.check(tree, WHOLE, tiny.mesh(8))
    layout.check(tree, WHOLE, tiny.mesh(1))


@pytest.mark.parametrize("devices", [2, 8])
def test_gradient_and_norm_of_shares(devices):
    """The loss of device d is (d + 1) (|w|^2 + |v|^2): the mean over n devices has the gradient (n + 1) (w, v)."""
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(16, 3)).astype(np.float32), "v": rng.normal(size=5).astype(np.float32)}
    axes = {"w": 0, "v": WHOLE}
    mesh = tiny.mesh(devices)

    def per_device(shares):
        def loss(shares):
            whole = layout.gather(shares, axes)
            assert whole["w"].shape == (16, 3)
            return (jax.lax.axis_index(sharding.AXIS) + 1.0) * sum(jnp.square(x).sum() for x in whole.values())

        grads = layout.mean(jax.grad(loss)(shares), axes)
        return grads, layout.norm(grads, axes)[None]

    specs = layout.specs(axes)
    mapped = jax.shard_map(per_device, mesh=mesh, in_specs=(specs,), out_specs=(specs, sharding.SPLIT), check_vma=False)
    grads, norms = jax.jit(mapped)(tree)
    expected = {name: (devices + 1) * x for name, x in tree.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, expected)
    length = np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in expected.values()))
    np.testing.assert_allclose(norms, np.full(devices, length), rtol=1e-5)  # the same on each


@pytest.mark.medium
@pytest.mark.parametrize(("row_3", "taken"), [(0.0, 0), (0.1, 2)])
def test_a_bad_number_in_one_devices_share_leaves_the_step_out_on_all(row_3, taken):
    """d|row 3|/d row 3 is NaN at 0: only in the gradient of the last device's share, while the loss is finite."""

    def network(params, x_t, t_B, labels_B, keys_B):
        return apply(params, x_t, t_B, labels_B, keys_B) + jnp.linalg.norm(params["embedding"][3])

    params = init_params() | {"embedding": jnp.full((4, 3), 0.1).at[3].set(row_3)}
    trainer = Trainer(optax.sgd(0.1), 4, network, lambda: params, shard=True, label_dropout=0.0)
    assert trainer.state.params["embedding"].sharding.shard_shape((4, 3)) == (1, 3)
    before = jax.device_get(trainer.state.params)
    trainer.run(2)
    assert trainer.sums["steps"] == taken
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), jax.device_get(trainer.state.params), before)
    assert set(moved.values()) == {taken > 0}
    for leaf in jax.tree.leaves(trainer.state.params):
        assert np.isfinite(leaf).all()
    for shard in trainer.state.params["kernel"].addressable_shards:  # replicated: all devices decided alike
        np.testing.assert_array_equal(shard.data, trainer.state.params["kernel"])
