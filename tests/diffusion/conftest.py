"""Gaussian data, for which the optimal denoiser is known, and the schedules that it is tested with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.guidance import denoiser
from dit_jax.diffusion.schedule import cosine, linear, rectified, sigmoid, to_zero_terminal_snr

MEAN = np.array([0.5, -0.3, 0.0, 0.8])  # of the pixels of a 2 x 2 image
STD = np.array([0.25, 0.4, 0.7, 1.5])
NAMES = ("linear", "cosine", "sigmoid", "rectified", "zero")  # `zero`: `linear` stretched to zero terminal SNR
# Predicted noise does not determine x_0 where alpha = 0, as at the end of the rectified and the stretched tables.
CASES = [(n, p) for n in NAMES for p in ("eps", "x0", "v", "velocity") if p != "eps" or n not in ("rectified", "zero")]


class Gaussian(NamedTuple):
    """Images whose pixels are independent N(mean, std^2): float64 [2, 2, 1] each."""

    mean: np.ndarray
    std: np.ndarray

    def end_of(self, schedule, t, x_t):
        """Returns where the probability flow carries x_t, float64: it keeps each pixel's (x - E x) / std x."""
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        spread = np.sqrt((alpha * self.std) ** 2 + sigma**2)
        return self.mean[None] + self.std[None] * (np.asarray(x_t, np.float64) - alpha * self.mean[None]) / spread[None]

    def network(self, schedule, prediction):
        """Returns (x_t, t) -> the optimal prediction: from E[x_0 | x_t] and E[eps | x_t], of the kind `prediction`."""
        alpha, sigma = (table[:, None, None, None] for table in schedule)
        mean, var = self.mean[None], self.std[None] ** 2
        total = alpha**2 * var + sigma**2
        center, x_0_slope, eps_slope = alpha * mean, alpha * var / total, sigma / total  # [T, 2, 2, 1]
        p, q = {"eps": (0, 1), "x0": (1, 0), "v": (-sigma, alpha), "velocity": (-1, 1)}[prediction]
        offset = p * np.broadcast_to(mean, center.shape)
        tables = [jnp.asarray(table, jnp.float32) for table in (center, p * x_0_slope + q * eps_slope, offset)]

        def predict(x_t, t_B):
            center, slope, offset = (table[t_B] for table in tables)
            return slope * (x_t - center) + offset

        return predict

    def denoiser(self, schedule, prediction):
        return denoiser(self.network(schedule, prediction), schedule, prediction)


@pytest.fixture
def gaussian():
    return Gaussian(MEAN.reshape(2, 2, 1), STD.reshape(2, 2, 1))


def tables(name, T=1000):
    """Returns a Schedule; `linear` is DDPM's, rescaled so that any T ends as noisy as T = 1000."""
    if name in ("linear", "zero"):
        ddpms = linear(T, 0.1 / T, 20 / T)
        return ddpms if name == "linear" else to_zero_terminal_snr(ddpms)
    return {"cosine": cosine, "sigmoid": sigmoid, "rectified": rectified}[name](T)


@pytest.fixture
def make_tables():
    return tables


def walk(denoise, plan, x, noise=lambda draw: 0.0):
    """Runs a plan row by row in float64: a second implementation, without `lax.scan`."""
    denoise = jax.jit(denoise)
    x = base = np.asarray(x, np.float64)
    x_0_prev = eps_prev = np.zeros_like(x)
    for r, t in enumerate(plan.t):
        x_0, eps = (
            np.asarray(part, np.float64) for part in denoise(jnp.asarray(x, jnp.float32), np.full(len(x), t, np.int32))
        )
        base = x if plan.keep[r] else base
        x = plan.x[r] * x + plan.base[r] * base + plan.x_0[r] * x_0 + plan.eps[r] * eps
        x = x + plan.x_0_prev[r] * x_0_prev + plan.eps_prev[r] * eps_prev
        x = x + (plan.noise[r] * noise(r + 1) if plan.noise[r] else 0.0)
        x_0_prev, eps_prev = x_0, eps
    return x


@pytest.fixture
def run_by_hand():
    return walk


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def any_case(request):
    return request.param


QUICK = {("linear", "eps"), ("rectified", "velocity")}  # the others run the same code with other numbers


@pytest.fixture(
    params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=lambda case: "-".join(case),
)
def case(request):
    return request.param
