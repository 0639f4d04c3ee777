"""Tests the average of the weights, whose half-life and ramp count images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.training.state import create, ema_rate, update_ema


def weight_of_the_old(steps, batch_size, half_life, ramp, first=0):
    return float(np.prod([1 - ema_rate(jnp.asarray(first + i), batch_size, half_life, ramp) for i in range(steps)]))


@pytest.mark.parametrize("batch_size", [10, 100])
def test_half_of_the_weight_is_gone_after_half_life_images(batch_size):
    late = 1_000_000  # the ramp is over
    assert weight_of_the_old(1000 // batch_size, batch_size, 1000.0, 0.05, late) == pytest.approx(0.5, rel=1e-3)
    assert weight_of_the_old(3000 // batch_size, batch_size, 1000.0, 0.05, late) == pytest.approx(0.125, rel=1e-3)


def test_ramp_bounds_the_half_life_by_the_images_seen():
    # After 1,000 images of batch 10 the half-life is 0.05 x 1,000 = 50 images: a step keeps 0.5^(10 / 50).
    assert ema_rate(jnp.asarray(100), 10, 1e6, 0.05) == pytest.approx(1 - 0.5**0.2, rel=1e-5)
    # From 2,000 images on, a half-life of 100 is the smaller of the two.
    assert ema_rate(jnp.asarray(200), 10, 100.0, 0.05) == pytest.approx(1 - 0.5**0.1, rel=1e-5)
    assert ema_rate(jnp.asarray(400), 10, 100.0, 0.05) == pytest.approx(1 - 0.5**0.1, rel=1e-5)
    # Before the first step no images are seen: the fresh weights are forgotten at once.
    assert ema_rate(jnp.asarray(0), 10, 1e6, 0.05) == 1


def test_half_life_zero_is_no_average():
    assert ema_rate(jnp.asarray(5), 16, 0.0, 0.05) == 1


@pytest.mark.parametrize(("batch_size", "half_life"), [(1, 5e5), (1, 1e7), (16, 1e9)])
def test_a_slow_average_keeps_its_digits(batch_size, half_life):
    rate = ema_rate(jnp.asarray(2**31 - 1), batch_size, half_life, 1e6)
    assert rate == pytest.approx(np.log(2) * batch_size / half_life, rel=1e-4)


def test_update_by_hand():
    ema = update_ema({"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 2.0])}, jnp.asarray(0.25))
    np.testing.assert_allclose(ema["w"], [1.5, -1.0])  # 0.75 old + 0.25 new


def test_fresh_state():
    params = {"w": jnp.arange(3.0)}
    state = jax.jit(lambda: create(lambda: params, optax.sgd(0.1)))()
    assert state.step == 0
    assert state.step.dtype == jnp.int32
    np.testing.assert_array_equal(state.params["w"], state.ema_params["w"])
    # They need two buffers: donating one must not invalidate the other.
    assert state.params["w"].unsafe_buffer_pointer() != state.ema_params["w"].unsafe_buffer_pointer()
