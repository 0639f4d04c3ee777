"""Noise schedules: tables alpha and sigma that define x_t = alpha[t] x_0 + sigma[t] eps for t = 0 .. T-1.

Every diffusion process is a way to fill the tables; nothing downstream depends on which one it was. Tables are NumPy
float64, and become float32 constants only where a jitted function uses them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_BETA = 0.999  # betas are clipped to this (Nichol & Dhariwal 2021, section 3.2)


class Schedule(NamedTuple):
    """alpha, sigma: float64 [T]; sigma grows with t, and alpha / sigma falls."""

    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.alpha)


def from_betas(beta: np.ndarray) -> Schedule:
    """Returns alpha_t^2 = prod_{s <= t} (1 - beta_s), sigma_t^2 = 1 - alpha_t^2. DDPM (Ho et al. 2020), equation 4."""
    log_alpha_bar = np.cumsum(np.log1p(-beta))
    return Schedule(alpha=np.exp(0.5 * log_alpha_bar), sigma=np.sqrt(-np.expm1(log_alpha_bar)))


def from_curve(num_steps: int, alpha_bar: Callable[[np.ndarray], np.ndarray]) -> Schedule:
    """Returns alpha_t^2 = alpha_bar(s) / alpha_bar(0) at s = (t + 1) / T, with betas clipped to at most 0.999.

    Source: improved DDPM (Nichol & Dhariwal 2021), section 3.2, whose t / T is s here.
    """
    bar = alpha_bar(np.arange(num_steps + 1, dtype=np.float64) / num_steps)
    return from_betas(np.minimum(1 - bar[1:] / bar[:-1], MAX_BETA))


def linear(num_steps: int, beta_start: float, beta_end: float) -> Schedule:
    """Returns the schedule with evenly spaced beta_t.

    Source: DDPM (Ho et al. 2020), section 4: beta from 1e-4 to 0.02 over T = 1000.
    """
    return from_betas(np.linspace(beta_start, beta_end, num_steps, dtype=np.float64))


def cosine(num_steps: int, offset: float = 0.008) -> Schedule:
    """Returns the schedule of alpha_bar(s) = cos^2((s + offset) / (1 + offset) pi / 2).

    Source: improved DDPM (Nichol & Dhariwal 2021), equation 17.
    """
    return from_curve(num_steps, lambda s: np.square(np.cos((s + offset) / (1 + offset) * np.pi / 2)))


def sigmoid(num_steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """Returns the schedule whose alpha_bar(s) is a logistic curve from `start` to `end`, rescaled to fall from 1 to 0.

    Source: Jabri et al. 2022; Chen 2023, algorithm 1. They keep alpha_bar above 1e-9; here the betas are clipped.
    """
    curve = lambda s: 1 / (1 + np.exp(-(start + (end - start) * s) / tau))  # noqa: E731
    return from_curve(num_steps, lambda s: (curve(1.0) - curve(s)) / (curve(1.0) - curve(0.0)))


def to_zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Rescales a variance-preserving schedule so that t = T-1 is pure noise and t = 0 is unchanged; T is at least 2.

    Source: Lin et al. 2023, algorithm 1.
    """
    first, last = schedule.alpha[0], schedule.alpha[-1]
    alpha = (schedule.alpha - last) * (first / (first - last))
    sigma = np.sqrt((1 - alpha) * (1 + alpha))
    sigma[0] = schedule.sigma[0]  # which 1 - alpha would round to 0 where betas begin below 1e-15
    return Schedule(alpha=alpha, sigma=sigma)


def rectified(num_steps: int) -> Schedule:
    """Returns alpha = 1 - s, sigma = s at s = (t + 1) / T: straight lines from data to pure noise, reached at t = T-1.

    Source: rectified flow (Liu et al. 2023); flow matching with the optimal-transport path (Lipman et al. 2023).
    """
    s = np.arange(1, num_steps + 1, dtype=np.float64) / num_steps
    return Schedule(alpha=1 - s, sigma=s)


# name -> function (T, beta_start, beta_end) -> schedule; only `linear` reads the betas
SCHEDULES: dict[str, Callable[[int, float, float], Schedule]] = {
    "linear": linear,
    "cosine": lambda num_steps, *_: cosine(num_steps),
    "sigmoid": lambda num_steps, *_: sigmoid(num_steps),
    "rectified": lambda num_steps, *_: rectified(num_steps),
}


def make_schedule(
    name: str, num_steps: int, beta_start: float, beta_end: float, zero_terminal_snr: bool = False
) -> Schedule:
    """Returns the named schedule; `zero_terminal_snr` leaves one that already ends at pure noise unchanged.

    Raises:
      ValueError: the name is unknown, T is below 1, or the betas of `linear` are outside (0, 1).
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not known; use {', '.join(SCHEDULES)}")
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps; use at least 1")
    if name == "linear" and not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(f"betas from {beta_start} to {beta_end}; use numbers between 0 and 1")
    schedule = SCHEDULES[name](num_steps, beta_start, beta_end)
    return to_zero_terminal_snr(schedule) if zero_terminal_snr and schedule.alpha[-1] > 0 else schedule


def gather(table: np.ndarray, t_B: jax.Array) -> jax.Array:
    """Returns table[t] as float32 [B, 1, 1, 1], which broadcasts over images."""
    return jnp.asarray(table, jnp.float32)[t_B][:, None, None, None]


def q_sample(schedule: Schedule, x_0: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """Returns x_t = alpha[t] x_0 + sigma[t] eps for images and noise [B, H, W, C], timesteps [B]. DDPM, equation 4."""
    return gather(schedule.alpha, t_B) * x_0 + gather(schedule.sigma, t_B) * eps
