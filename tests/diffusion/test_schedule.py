import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.schedule import (
    SCHEDULES,
    cosine,
    gather,
    linear,
    make_schedule,
    q_sample,
    rectified,
    sigmoid,
    to_zero_terminal_snr,
)


def ddpm_alpha_bar(t, T=1000, first=1e-4, last=0.02):
    """prod_{s <= t} (1 - beta_s), beta evenly spaced from 1e-4 to 0.02 (Ho et al. 2020, section 4), one by one."""
    return math.prod(1 - (first + (last - first) * s / (T - 1)) for s in range(t + 1))


@pytest.mark.parametrize("t", [0, 1, 250, 499, 998, 999])
def test_linear_is_ddpms(t):
    schedule = linear(1000, 1e-4, 0.02)
    np.testing.assert_allclose(schedule.alpha[t] ** 2, ddpm_alpha_bar(t), rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma[t] ** 2, 1 - ddpm_alpha_bar(t), rtol=1e-12)


def test_linear_leaves_the_published_rest_of_the_signal():
    """alpha_bar_T = 4.036e-5, the terminal SNR in Lin et al. 2023, table 1, which is not zero."""
    schedule = linear(1000, 1e-4, 0.02)
    assert schedule.alpha[-1] ** 2 == pytest.approx(4.036e-5, rel=1e-3)
    assert schedule.alpha[0] ** 2 == pytest.approx(0.9999, rel=1e-12)


def test_linear_by_hand():
    """Betas 0.1, 0.2, 0.3: alpha_bar 0.9, 0.72, 0.504."""
    schedule = linear(3, 0.1, 0.3)
    np.testing.assert_allclose(schedule.alpha**2, [0.9, 0.72, 0.504], rtol=1e-14)
    np.testing.assert_allclose(schedule.sigma**2, [0.1, 0.28, 0.496], rtol=1e-14)


@pytest.mark.parametrize("t", [0, 1, 250, 499, 998])
def test_cosine_is_the_papers(t):
    """Nichol & Dhariwal 2021, equation 17: alpha_bar = f(t) / f(0), f = cos^2((t / T + 0.008) / 1.008 pi / 2)."""
    f = lambda n: math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    np.testing.assert_allclose(cosine(1000).alpha[t] ** 2, f(t + 1) / f(0), rtol=1e-9)


def test_cosine_ends_with_a_clipped_beta():
    """alpha_bar would end at 0; with the last beta cut to 0.999, a thousandth of the one before is left."""
    alpha_bar = cosine(1000).alpha ** 2
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001, rel=1e-9)
    assert alpha_bar[-2] / alpha_bar[-3] == pytest.approx(0.25, rel=1e-2)  # cos^2 falls as the square near its zero
    assert cosine(1).alpha[0] ** 2 == pytest.approx(0.001, rel=1e-9)


@pytest.mark.parametrize("t", [0, 1, 250, 499, 998])
def test_sigmoid_is_the_papers(t):
    """Chen 2023, algorithm 1, sigmoid_schedule with start -3, end 3, tau 1."""
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = (logistic(3) - logistic((t + 1) / 1000 * 6 - 3)) / (logistic(3) - logistic(-3))
    np.testing.assert_allclose(sigmoid(1000).alpha[t] ** 2, expected, rtol=1e-9)


def test_sigmoid_by_hand():
    """Half of the signal's power at s = 1/2, by symmetry; then the last beta is 0.999."""
    np.testing.assert_allclose(sigmoid(2).alpha ** 2, [0.5, 0.0005], rtol=1e-12)


def test_zero_terminal_snr_by_hand():
    """Lin et al. 2023, algorithm 1, on sqrt(alpha_bar) = 0.9, 0.6, 0.1: less 0.1, times 0.9 / 0.8."""
    alpha = np.array([0.9, 0.6, 0.1])
    stretched = to_zero_terminal_snr(type(cosine(3))(alpha, np.sqrt(1 - alpha**2)))
    np.testing.assert_allclose(stretched.alpha, [0.9, 0.5625, 0.0], rtol=1e-14)
    np.testing.assert_allclose(stretched.sigma**2, [0.19, 1 - 0.5625**2, 1.0], rtol=1e-13)
    assert stretched.alpha[-1] == 0
    assert stretched.sigma[-1] == 1


def test_zero_terminal_snr_keeps_very_little_noise_at_the_start():
    """DDPM, equation 4: at t = 0, sigma^2 is the first beta."""
    assert make_schedule("linear", 1000, 1e-20, 0.02, True).sigma[0] == pytest.approx(1e-10, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_of_every_schedule(name):
    plain, zero = (make_schedule(name, 1000, 1e-4, 0.02, flag) for flag in (False, True))
    assert zero.alpha[-1] == 0
    assert zero.alpha[0] == pytest.approx(plain.alpha[0], rel=1e-14)
    assert (np.diff(zero.alpha) < 0).all()
    assert (np.diff(zero.sigma) > 0).all()
    if name == "rectified":  # it ends there already, and is left alone
        np.testing.assert_array_equal(zero, plain)
    else:
        np.testing.assert_allclose(zero.alpha**2 + zero.sigma**2, 1, rtol=1e-14)


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
    assert (schedule.sigma > 0).all()  # eps is computed by dividing by it
    power = schedule.alpha + schedule.sigma if name == "rectified" else schedule.alpha**2 + schedule.sigma**2
    np.testing.assert_allclose(power, 1, rtol=1e-14)


def test_make_schedule_knows_which_is_which():
    np.testing.assert_array_equal(make_schedule("linear", 7, 0.01, 0.2).alpha, linear(7, 0.01, 0.2).alpha)
    np.testing.assert_array_equal(make_schedule("cosine", 7, 0.01, 0.2).alpha, cosine(7).alpha)
    np.testing.assert_array_equal(make_schedule("sigmoid", 7, 0.01, 0.2).alpha, sigmoid(7).alpha)
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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lineal", 10, 1e-4, 0.02), "schedule 'lineal' is not known; use linear, "),
        (("linear", 0, 1e-4, 0.02), "0 steps; use at least 1"),
        (("linear", 10, 0.5, 1.5), "betas from 0.5 to 1.5; use numbers between"),
        (("linear", 10, 0.0, 0.5), "betas from 0.0 to 0.5"),
        (("linear", 10, float("nan"), 0.5), "betas from nan"),
    ],
)
def test_what_makes_no_tables_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        make_schedule(*arguments)
