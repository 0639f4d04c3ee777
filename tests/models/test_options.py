"""Optional parts of the network: norms of queries and keys, long skips, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.attention import Attention
from dit_jax.models.dit import Block, dropout
from tests.models.test_attention import textbook

pytestmark = pytest.mark.medium

RATE = 0.3


@pytest.fixture
def normed():
    """(attention of 4 query heads on 2 key/value heads with norms, its input [2, 5, 16], random parameters)."""
    attention = Attention(num_heads=4, num_kv_heads=2, qk_norm=True, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)
    return attention, x, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_norms_of_queries_and_keys_by_hand(normed):
    attention, x, params = normed
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    qkv = np.asarray(x, np.float64) @ weights["qkv"]["kernel"] + weights["qkv"]["bias"]
    q, k, v = (part.reshape(2, 5, -1, 4) for part in np.split(qkv, [16, 24], axis=-1))
    rms = lambda a: np.sqrt((a**2).mean(-1, keepdims=True))  # noqa: E731
    q, k = q / rms(q) * weights["q_norm"]["scale"], k / rms(k) * weights["k_norm"]["scale"]
    out = textbook(q, k.repeat(2, axis=2), v.repeat(2, axis=2)).reshape(2, 5, 16)
    expected = out @ weights["out"]["kernel"] + weights["out"]["bias"]
    np.testing.assert_allclose(attention.apply(params, x), expected, rtol=1e-4, atol=1e-4)


def test_norms_start_at_scale_one_and_undo_the_length_of_queries_and_keys(normed):
    attention, x, params = normed
    fresh = attention.init(jax.random.key(0), x)["params"]
    for norm in ("q_norm", "k_norm"):
        np.testing.assert_array_equal(fresh[norm]["scale"], np.ones(4))
    longer = {"params": params["params"] | {"qkv": dict(params["params"]["qkv"])}}
    for name, leaf in params["params"]["qkv"].items():
        longer["params"]["qkv"][name] = leaf.at[..., :24].multiply(1000)  # all but the values
    np.testing.assert_allclose(attention.apply(longer, x), attention.apply(params, x), rtol=1e-3, atol=1e-3)


# By depth: {block: the block whose output it also takes}. U-ViT's depths are odd, with one block in the middle.
SKIPS = {3: {2: 0}, 4: {3: 0}, 5: {3: 1, 4: 0}, 6: {4: 1, 5: 0}, 7: {4: 2, 5: 1, 6: 0}}


@pytest.mark.parametrize("depth", SKIPS)
def test_long_skips_lead_from_the_first_half_to_its_mirror(make_tiny, make_inputs, randomised, depth):
    """Each block's output equals that of a block without skips whose input NumPy has joined."""
    model, inputs = make_tiny(depth=depth, long_skips=True), make_inputs()
    params = randomised(model, inputs)
    _, seen = model.apply(params, *inputs, capture_intermediates=lambda module, _: isinstance(module, Block))
    streams = [seen["intermediates"][f"block_{i}"]["__call__"][0] for i in range(depth)]
    block = Block(4, 2, qk_norm=False, mlp_ratio=4, dropout=0.0, adaptive=False, dtype=jnp.float32)
    for i in range(1, depth):
        weights, x = dict(params["params"][f"block_{i}"]), np.asarray(streams[i - 1])
        if i in SKIPS[depth]:
            joined, skip = np.concatenate([x, streams[SKIPS[depth][i]]], axis=-1), weights.pop("skip")
            x = joined @ np.asarray(skip["kernel"]) + np.asarray(skip["bias"])
        assert "skip" not in weights
        expected = block.apply({"params": weights}, x, jnp.zeros((2, 32)))
        np.testing.assert_allclose(streams[i], expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_of_the_options_has_a_gradient(make_tiny, make_inputs, randomised, conditioning):
    model = make_tiny(conditioning=conditioning, depth=3, long_skips=True, qk_norm=True)
    inputs = make_inputs(n=5)
    gradients = jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, *inputs)).sum()))(randomised(model, inputs))
    for path in ("block_2/skip/kernel", "block_2/skip/bias", "block_0/attention/q_norm", "block_2/attention/k_norm"):
        leaf = gradients["params"]
        for name in path.split("/"):
            leaf = leaf[name]
        assert np.abs(np.asarray(jax.tree.leaves(leaf)[0])).min() > 0, path


def test_dropout_keeps_or_drops_and_each_image_by_its_own_key():
    x, keys = jax.random.normal(jax.random.key(0), (4, 50, 40)), jax.random.split(jax.random.key(1), 4)
    out = np.asarray(dropout(x, 0, RATE, keys))
    dropped = out == 0
    assert dropped.mean() == pytest.approx(RATE, abs=4 * (RATE * (1 - RATE) / x.size) ** 0.5)
    np.testing.assert_allclose(out[~dropped], np.asarray(x)[~dropped] / 0.7, rtol=1e-6)
    assert (dropped[0] != dropped[1]).mean() == pytest.approx(2 * RATE * (1 - RATE), abs=0.05)
    np.testing.assert_array_equal(dropout(x[2:3], 0, RATE, keys[2:3]), out[2:3])


@pytest.fixture
def additions(make_tiny, make_inputs, conditioning):
    """Returns additions(rate, *keys) -> [2, B, N, D]: what two blocks add if attention gives 1 and the MLP 10."""
    inputs, settings = make_inputs(n=8), dict(depth=3, conditioning=conditioning)
    shapes = jax.eval_shape(make_tiny(**settings).init, jax.random.key(0), *inputs)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    for i in range(3):
        block = params["params"][f"block_{i}"]
        block["attention"]["out"]["bias"] += 1.0
        block["mlp"]["Dense_1"]["bias"] += 10.0
        if conditioning == "adaln_zero":
            block["adaln"]["Dense_0"]["bias"] += jnp.repeat(jnp.array([0.0, 0, 1, 0, 0, 1]), 32)  # its gates are open

    def make(rate, *keys):
        model, is_block = make_tiny(**settings, dropout=rate), lambda module, _: isinstance(module, Block)
        _, seen = model.apply(params, *inputs, *keys, capture_intermediates=is_block)
        return np.diff([seen["intermediates"][f"block_{i}"]["__call__"][0] for i in range(3)], axis=0)

    return make


def test_dropout_of_attention_and_mlp_apart_and_anew_in_each_block(additions):
    keys = jax.random.split(jax.random.key(3), 8)
    added = additions(RATE, keys) * (1 - RATE)
    shares = {value: np.isclose(added, value, atol=1e-3).mean() for value in (0, 1, 10, 11)}
    assert sum(shares.values()) == pytest.approx(1)
    expected = {0: RATE**2, 1: (1 - RATE) * RATE, 10: RATE * (1 - RATE), 11: (1 - RATE) ** 2}
    assert shares == pytest.approx(expected, abs=0.03)
    first, second = added > 5  # where the MLP's part was kept
    assert (first != second).mean() == pytest.approx(2 * RATE * (1 - RATE), abs=0.05)


def test_no_dropout_without_keys_or_rate(additions):
    np.testing.assert_allclose(additions(0.0, jax.random.split(jax.random.key(3), 8)), 11, rtol=1e-5)
    np.testing.assert_allclose(additions(RATE), 11, rtol=1e-5)  # sampling and evaluation give none
