"""The samplers' tables against the papers' equations."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

from dit_jax.diffusion.sampling import SAMPLERS, VARIANCES, ddim, ddpm, dpmpp_2m, heun
from dit_jax.diffusion.schedule import SCHEDULES, linear, make_schedule, rectified
from dit_jax.diffusion.spacing import SPACINGS, linspace

UNUSED_BY_DDPM = ("base", "x_0_prev", "eps", "eps_prev")


def test_ddpm_by_hand():
    """Betas 0.1, 0.2: alpha_bar 0.9, 0.72. At t = 1 the posterior has variance 0.1 / 0.28 * 0.2 = 1 / 14."""
    plan = ddpm(linear(2, 0.1, 0.2), np.array([1, 0]), "small")
    np.testing.assert_allclose(plan.x_0[0], math.sqrt(0.9) * 0.2 / 0.28, rtol=1e-12)
    np.testing.assert_allclose(plan.x[0], math.sqrt(0.8) * 0.1 / 0.28, rtol=1e-12)
    np.testing.assert_allclose(plan.noise[0] ** 2, 1 / 14, rtol=1e-12)
    np.testing.assert_allclose([plan.x_0[1], plan.x[1], plan.noise[1]], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 10, 499, 998, 999])
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_rows_are_the_papers_posterior(t, variance):
    """Ho et al. 2020, equations 6-7 and section 3.2, computed product by product (the paper's t is ours plus 1)."""
    beta = [1e-4 + (0.02 - 1e-4) * s / 999 for s in range(1000)]
    bar, before = math.prod(1 - b for b in beta[: t + 1]), math.prod(1 - b for b in beta[:t])
    plan = ddpm(linear(1000, 1e-4, 0.02), linspace(1000, 1000), variance)
    row = 999 - t
    assert plan.t[row] == t
    np.testing.assert_allclose(plan.x_0[row], math.sqrt(before) * beta[t] / (1 - bar), rtol=1e-9)
    np.testing.assert_allclose(plan.x[row], math.sqrt(1 - beta[t]) * (1 - before) / (1 - bar), rtol=1e-9)
    expected = beta[t] if variance == "large" else (1 - before) / (1 - bar) * beta[t]
    np.testing.assert_allclose(plan.noise[row] ** 2, expected, rtol=1e-9)
    assert all(not getattr(plan, name).any() for name in UNUSED_BY_DDPM)


@pytest.mark.parametrize("variance", VARIANCES)
def test_respaced_ddpm_is_the_posterior_of_the_respaced_betas(variance):
    """Improved DDPM, section 4: beta_{S_t} = 1 - alpha_bar_{S_t} / alpha_bar_{S_{t-1}} in the same equations."""
    schedule, visited = linear(1000, 1e-4, 0.02), [999, 666, 333, 0]
    plan = ddpm(schedule, np.array(visited), variance)
    bar = schedule.alpha**2
    for row, (t, s) in enumerate(pairwise(visited)):
        beta = 1 - bar[t] / bar[s]
        np.testing.assert_allclose(plan.x_0[row], math.sqrt(bar[s]) * beta / (1 - bar[t]), rtol=1e-9)
        np.testing.assert_allclose(plan.x[row], math.sqrt(1 - beta) * (1 - bar[s]) / (1 - bar[t]), rtol=1e-9)
        expected = beta if variance == "large" else (1 - bar[s]) / (1 - bar[t]) * beta
        np.testing.assert_allclose(plan.noise[row] ** 2, expected, rtol=1e-9)


def test_ddim_rows_by_hand():
    """Song et al. 2021, equation 12 with eta = 0, on alpha = 0, 1/4, 3/4: x_s = alpha_s x_0 + sigma_s eps."""
    plan = ddim(rectified(4), np.array([3, 2, 0]))
    np.testing.assert_allclose(plan.x_0, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(plan.eps, [0.75, 0.25, 0.0])
    assert all(not getattr(plan, name).any() for name in ("x", "base", "x_0_prev", "eps_prev", "noise"))


def test_ddim_noise_by_hand():
    """Song et al. 2021, equation 16, betas 0.1, 0.2: n = eta sqrt(0.1 / 0.28) sqrt(1 - 0.72 / 0.9) = eta / sqrt(14)."""
    plan = ddim(linear(2, 0.1, 0.2), np.array([1, 0]), eta=0.5)
    np.testing.assert_allclose(plan.noise, [0.5 / math.sqrt(14), 0], rtol=1e-12)
    np.testing.assert_allclose(plan.eps, [math.sqrt(0.1 - 0.25 / 14), 0], rtol=1e-12)  # equation 12
    np.testing.assert_allclose(plan.x_0, [math.sqrt(0.9), 1], rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_with_all_its_noise_is_ancestral_sampling(name, zero, steps):
    """Song et al. 2021, section 4.1: put x = alpha x_0 + sigma eps into DDPM's mean; the noise is the same."""
    schedule = make_schedule(name, 50, 1e-3, 0.2, zero)
    t = linspace(50, steps)
    ours, ancestral = ddim(schedule, t, eta=1.0), ddpm(schedule, t, "small")
    np.testing.assert_allclose(ours.x_0, ancestral.x_0 + ancestral.x * schedule.alpha[t], rtol=1e-9)
    np.testing.assert_allclose(ours.eps, ancestral.x * schedule.sigma[t], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.noise, ancestral.noise, rtol=1e-9)


def test_dpmpp_2m_by_hand():
    """Rectified T = 4: alpha / sigma is 0, 1/3, 1, 3. The third step is as long as the second, log 3, so D is
    x_0 + (x_0 - x_0_prev) / 2, times 3/4 - 1/2 * 1/2. The other steps, or those before them, are infinite: D is x_0.
    """
    plan = dpmpp_2m(rectified(4), np.array([3, 2, 1, 0]))
    np.testing.assert_allclose(plan.x, [0.75, 0.5 / 0.75, 0.5, 0], rtol=1e-12)
    np.testing.assert_allclose(plan.x_0, [0.25, 0.5 - 0.25 / 0.75 * 0.5, 0.5 * 1.5, 1], rtol=1e-12)
    np.testing.assert_allclose(plan.x_0_prev, [0, 0, -0.25, 0], atol=1e-12)
    assert all(not getattr(plan, name).any() for name in ("base", "eps", "eps_prev", "noise"))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_plan_is_finite_and_ends_clean_from_any_start(spacing, name):
    for zero in (False, True):
        schedule = make_schedule(name, 30, 1e-3, 0.3, zero)
        for sampler, variance in product(SAMPLERS, VARIANCES):
            for steps, eta in ((1, 0.0), (2, 1.0), (3, 0.5), (9, 1.0), (30, 0.3)):
                plan = SAMPLERS[sampler](schedule, SPACINGS[spacing](schedule, steps), variance, eta)
                assert all(np.isfinite(column).all() for column in plan)
                assert all(column.dtype == np.float64 for column in plan[1:])
                last = {name: column[-1] for name, column in plan._asdict().items() if name not in ("t", "keep")}
                assert last.pop("x_0") == pytest.approx(1, abs=1e-12)
                assert np.abs(list(last.values())).max() < 1e-12


def test_heun_visits_each_next_level_twice():
    assert heun(rectified(4), np.array([3, 2, 0])).t.tolist() == [3, 2, 2, 0, 0]
    assert heun(rectified(4), np.array([3])).t.tolist() == [3]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [linear(50, 1e-3, 0.2), rectified(50)], ids=["linear", "rectified"])
def test_a_perfect_denoiser_stays_on_the_line(sampler, schedule):
    """With x = alpha_t x_0 + sigma_t eps and the true pair, deterministic rows end at alpha_s x_0 + sigma_s eps."""
    t = linspace(50, 7)
    plan = SAMPLERS[sampler](schedule, t, "small", 0.0)
    x_0, eps = 0.7, -1.3
    x = base = schedule.alpha[49] * x_0 + schedule.sigma[49] * eps
    variance = 0.0
    for row in range(len(plan.t)):
        base = x if plan.keep[row] else base
        known = plan.x[row] * x + plan.base[row] * base
        x = known + (plan.x_0[row] + plan.x_0_prev[row]) * x_0 + (plan.eps[row] + plan.eps_prev[row]) * eps
        step = row // 2 if sampler == "heun" else row
        if sampler != "ddpm" and step < 6:
            s = t[step + 1]
            assert x == pytest.approx(schedule.alpha[s] * x_0 + schedule.sigma[s] * eps, abs=1e-9)
        variance = plan.x[row] ** 2 * variance + plan.noise[row] ** 2
    assert x == pytest.approx(x_0, abs=1e-9)
    assert variance == pytest.approx(0, abs=1e-9)
