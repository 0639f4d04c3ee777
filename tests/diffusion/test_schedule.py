import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.schedule import SCHEDULES, gather, linear, make_schedule, q_sample, rectified
from dit_jax.diffusion.spacing import linspace


def ddpm_alpha_bar(t, T=1000, first=1e-4, last=0.02):
    """prod_{s <= t} (1 - beta_s), beta evenly spaced from 1e-4 to 0.02 (Ho et al. 2020, section 4), one by one."""
    return math.prod(1 - (first + (last - first) * s / (T - 1)) for s in range(t + 1))


@pytest.mark.parametrize("t", [0, 1, 250, 499, 998, 999])
def test_linear_is_ddpms(t):
    schedule = linear(1000, 1e-4, 0.02)
    np.testing.assert_allclose(schedule.alpha[t] ** 2, ddpm_alpha_bar(t), rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma[t] ** 2, 1 - ddpm_alpha_bar(t), rtol=1e-12)


def test_linear_leaves_the_published_rest_of_the_signal():
    """alpha_bar_T = 4.036e-5, the zero terminal SNR that is none of Lin et al. 2023, table 1."""
    schedule = linear(1000, 1e-4, 0.02)
    assert schedule.alpha[-1] ** 2 == pytest.approx(4.036e-5, rel=1e-3)
    assert schedule.alpha[0] ** 2 == pytest.approx(0.9999, rel=1e-12)


def test_linear_by_hand():
    """Betas 0.1, 0.2, 0.3: alpha_bar 0.9, 0.72, 0.504."""
    schedule = linear(3, 0.1, 0.3)
    np.testing.assert_allclose(schedule.alpha**2, [0.9, 0.72, 0.504], rtol=1e-14)
    np.testing.assert_allclose(schedule.sigma**2, [0.1, 0.28, 0.496], rtol=1e-14)


def test_rectified_by_hand():
    schedule = rectified(4)
    np.testing.assert_array_equal(schedule.sigma, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(schedule.alpha, [0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 1000])
def test_every_schedule_is_a_falling_signal_in_float64(name, T):
    schedule = make_schedule(name, T, 1e-4, 0.02)
    assert schedule.num_steps == T
    assert schedule.alpha.dtype == schedule.sigma.dtype == np.float64
    assert schedule.alpha.shape == schedule.sigma.shape == (T,)
    assert (np.diff(schedule.sigma) > 0).all()
    assert (np.diff(schedule.alpha) < 0).all()
    assert (schedule.sigma > 0).all()  # readings divide by it
    power = schedule.alpha + schedule.sigma if name == "rectified" else schedule.alpha**2 + schedule.sigma**2
    np.testing.assert_allclose(power, 1, rtol=1e-14)


def test_make_schedule_knows_which_is_which():
    np.testing.assert_array_equal(make_schedule("linear", 7, 0.01, 0.2).alpha, linear(7, 0.01, 0.2).alpha)
    np.testing.assert_array_equal(make_schedule("rectified", 7, 0.01, 0.2).alpha, rectified(7).alpha)


def test_gather_is_one_value_an_image():
    out = gather(np.array([1.0, 2.0, 4.0]), jnp.array([2, 0]))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.array([4.0, 1.0]).reshape(2, 1, 1, 1))


def test_q_sample_by_hand():
    """Rectified T = 4: at t = 0 three quarters image and one quarter noise, at t = 3 noise alone."""
    x_0 = jnp.array([4.0, 8.0]).reshape(2, 1, 1, 1)
    eps = jnp.array([-4.0, 5.0]).reshape(2, 1, 1, 1)
    out = jax.jit(lambda t: q_sample(rectified(4), x_0, eps, t))(jnp.array([0, 3]))
    np.testing.assert_array_equal(out.ravel(), [2.0, 5.0])


def test_respace_by_hand():
    assert linspace(1000, 1).tolist() == [999]
    assert linspace(1000, 2).tolist() == [999, 0]
    assert linspace(1000, 4).tolist() == [999, 666, 333, 0]
    assert linspace(1000, 1000).tolist() == list(range(999, -1, -1))
    assert linspace(1, 1).tolist() == [0]


def test_respace_is_even_and_visits_no_timestep_twice():
    for T in range(1, 41):
        for steps in range(1, T + 1):
            t = linspace(T, steps)
            assert len(t) == steps
            assert t[0] == T - 1
            assert (np.diff(t) < 0).all()
            if steps > 1:
                exact = [(T - 1) * (1 - i / (steps - 1)) for i in range(steps)]
                assert np.abs(t - exact).max() <= 0.5 + 1e-9
