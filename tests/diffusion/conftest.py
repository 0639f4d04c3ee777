"""Gaussian data, for which the best denoiser is known, and the schedules it is tried on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.guidance import denoiser
from dit_jax.diffusion.schedule import linear, rectified

MEAN = np.array([0.5, -0.3, 0.0, 0.8])  # of the pixels of a 2 x 2 image
STD = np.array([0.25, 0.4, 0.7, 1.5])
# Noise prediction cannot be read where alpha = 0, as at the end of the rectified tables.
CASES = [("linear", p) for p in ("eps", "x0", "v", "velocity")] + [("rectified", p) for p in ("x0", "v", "velocity")]


class Gaussian(NamedTuple):
    """Images whose pixels are independent N(mean, std^2): float64 [2, 2, 1] each."""

    mean: np.ndarray
    std: np.ndarray

    def end_of(self, schedule, t, x_t):
        """Where the probability flow carries x_t: it keeps (x - E x) / std x, pixel by pixel. Float64."""
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        spread = np.sqrt((alpha * self.std) ** 2 + sigma**2)
        return self.mean[None] + self.std[None] * (np.asarray(x_t, np.float64) - alpha * self.mean[None]) / spread[None]

    def network(self, schedule, prediction):
        """(x_t, t) -> the best prediction: E[x_0 | x_t] and E[eps | x_t], in the words of `prediction`."""
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


@pytest.fixture
def make_tables():
    """make_tables(name, T) -> a Schedule; `linear` is DDPM's, rescaled so that any T ends as noisy as T = 1000."""
    return lambda name, T=1000: rectified(T) if name == "rectified" else linear(T, 0.1 / T, 20 / T)


QUICK = {("linear", "eps"), ("rectified", "velocity")}  # the rest takes the same way with other numbers


@pytest.fixture(
    params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=lambda case: "-".join(case),
)
def case(request):
    return request.param
