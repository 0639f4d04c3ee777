"""Noise schedules: two float64 tables, x_t = alpha[t] x_0 + sigma[t] eps for t = 0 .. T-1.

Every process is a way to fill them; nothing downstream knows which one it was. Tables are NumPy float64 and become
float32 constants only where a jitted function uses them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
    """alpha, sigma: float64 [T]; sigma grows with t, and alpha / sigma falls."""

    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.alpha)


def linear(num_steps: int, beta_start: float, beta_end: float) -> Schedule:
    """beta_t evenly spaced, alpha_t^2 = prod_{s <= t} (1 - beta_s), sigma_t^2 = 1 - alpha_t^2.

    Source: DDPM (Ho et al. 2020), section 4: beta from 1e-4 to 0.02 over T = 1000.
    """
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)))
    return Schedule(alpha=np.exp(0.5 * log_alpha_bar), sigma=np.sqrt(-np.expm1(log_alpha_bar)))


def rectified(num_steps: int) -> Schedule:
    """alpha = 1 - s, sigma = s at s = (t + 1) / T: straight lines from data to pure noise, which t = T-1 reaches.

    Source: rectified flow (Liu et al. 2023); flow matching with the optimal-transport path (Lipman et al. 2023).
    """
    s = np.arange(1, num_steps + 1, dtype=np.float64) / num_steps
    return Schedule(alpha=1 - s, sigma=s)


def make_schedule(name: str, num_steps: int, beta_start: float, beta_end: float) -> Schedule:
    """The tables by name; only `linear` reads the betas."""
    return {"linear": lambda: linear(num_steps, beta_start, beta_end), "rectified": lambda: rectified(num_steps)}[
        name
    ]()


SCHEDULES = ("linear", "rectified")


def gather(table: np.ndarray, t_B: jax.Array) -> jax.Array:
    """table[t] as float32 [B, 1, 1, 1], to multiply images with."""
    return jnp.asarray(table, jnp.float32)[t_B][:, None, None, None]


def q_sample(schedule: Schedule, x_0: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_t = alpha[t] x_0 + sigma[t] eps: images and noise [B, H, W, C], timesteps [B]. DDPM, equation 4."""
    return gather(schedule.alpha, t_B) * x_0 + gather(schedule.sigma, t_B) * eps


def respace(num_steps: int, steps: int) -> np.ndarray:
    """The timesteps that `steps` sampling steps visit, falling from T-1 to 0: int [steps], evenly spaced, both ends.

    Source: "linspace" spacing; improved DDPM (Nichol & Dhariwal 2021), section 4.
    """
    if steps == 1:
        return np.array([num_steps - 1])
    return np.round(np.linspace(num_steps - 1, 0, steps)).astype(np.int64)
