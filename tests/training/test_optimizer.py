"""The learning rate by hand, and AdamW against the paper's algorithm in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.training import optimizer
from tests import tiny


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 0.1, 1: 0.1, 20: 0.1}),
        ("constant", 4, {0: 0.025, 1: 0.05, 3: 0.1, 4: 0.1, 20: 0.1}),
        ("constant", 1, {0: 0.1, 1: 0.1}),
        # (1 + cos(pi k / 16)) / 2 after k of 16 steps: 1, 0.853553..., 1/2, 0
        ("cosine", 4, {0: 0.025, 3: 0.1, 4: 0.1, 8: 0.0853553, 12: 0.05, 20: 0.0}),
        ("cosine", 0, {0: 0.1, 10: 0.05, 20: 0.0}),
        ("cosine", 30, {14: 0.05}),  # a warm-up longer than the run
    ],
)
def test_learning_rate_by_hand(schedule, warmup, expected):
    rate = optimizer.learning_rate_schedule(schedule, 0.1, warmup, 20)
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("conditioning", ["token", "adaln_zero"])
def test_decay_shrinks_matrices_and_leaves_biases_and_the_class_table_alone(conditioning, monkeypatch):
    tiny.install(monkeypatch)
    shapes = jax.eval_shape(tiny.experiment(model__conditioning=conditioning).init_params)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    adamw = optimizer.adamw(lambda _: 0.1, 0.9, 0.999, 0.5, 0.0)
    updates, _ = jax.jit(lambda p: adamw.update(jax.tree.map(jnp.zeros_like, p), adamw.init(p), p))(params)
    names = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        names.add(path[-1].key)
        # Without a gradient a step is -rate x decay x parameter, or nothing.
        expected = -0.05 if path[-1].key == "kernel" else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=jax.tree_util.keystr(path))
    assert names == {"kernel", "bias", "embedding"}


def numpy_adamw(parameter, gradients, rate, b1, b2, decay, clip):
    """Loshchilov & Hutter 2019, algorithm 2 with decoupled decay, after clipping to a norm (Pascanu et al. 2013)."""
    m, v = np.zeros_like(parameter), np.zeros_like(parameter)
    for t, gradient in enumerate(gradients, 1):
        norm = np.sqrt((gradient**2).sum())
        gradient = gradient * min(1, clip / norm)
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        parameter = parameter - rate(t - 1) * (step + decay * parameter)
    return parameter


def test_adamw_against_numpy():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    gradients = rng.normal(size=(5, 3, 4)) * [[[0.01]], [[2]], [[1]], [[0.1]], [[5]]]  # some are clipped, some not
    rate = optimizer.learning_rate_schedule("cosine", 0.03, 2, 6)
    adamw = optimizer.adamw(rate, 0.8, 0.95, 0.1, 1.0)
    params = {"kernel": jnp.asarray(start, jnp.float32)}
    state = adamw.init(params)
    for gradient in gradients:
        updates, state = adamw.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    expected = numpy_adamw(start, gradients, rate, 0.8, 0.95, 0.1, 1.0)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(numpy_adamw(start, gradients, rate, 0.8, 0.95, 0.1, 1e9) - expected).max() > 1e-3  # clipping matters


def test_the_norm_that_is_clipped_is_that_of_all_parameters_together():
    # Gradients 3 and 4 have the norm 5; clipped to 1 they are 0.6 and 0.8, and m = 0.1 of them after one step.
    adamw = optimizer.adamw(lambda _: 0.1, 0.9, 0.999, 0.0, 1.0)
    params = {"a": {"bias": jnp.zeros(1)}, "b": {"bias": jnp.zeros(1)}}
    gradients = {"a": {"bias": jnp.full(1, 3.0)}, "b": {"bias": jnp.full(1, 4.0)}}
    _, state = adamw.update(gradients, adamw.init(params), params)
    moments = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose([moments["a"]["bias"][0], moments["b"]["bias"][0]], [0.06, 0.08], rtol=1e-6)


def test_clip_norm_zero_is_no_clipping():
    adamw = optimizer.adamw(lambda _: 0.1, 0.9, 0.999, 0.0, 0.0)
    params = {"bias": jnp.zeros(1)}
    _, state = adamw.update({"bias": jnp.full(1, 300.0)}, adamw.init(params), params)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["bias"], [30.0], rtol=1e-6)
