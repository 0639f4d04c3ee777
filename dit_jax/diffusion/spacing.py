"""Spacings, which choose the timesteps a sampler visits: int [steps], strictly decreasing.

All raise ValueError unless 1 <= steps <= T. Papers count timesteps 1 .. T; here they are 0 .. T-1, one less.
"""

from collections.abc import Callable

import numpy as np

from dit_jax.diffusion.schedule import Schedule

RHO, MAX_NOISE = 7.0, 80.0  # Karras et al. 2022, table 1


def _check(num_steps: int, steps: int) -> None:
    if not 1 <= steps <= num_steps:
        raise ValueError(f"{steps} steps over {num_steps} timesteps: none is visited twice, so use 1 to {num_steps}")


def linspace(num_steps: int, steps: int) -> np.ndarray:
    """Spaces timesteps evenly from T-1 to 0, both included; a single step is at T-1.

    Values ascend before rounding, as in diffusers; at a half, improved DDPM's code, which sums strides, may differ by
    one. Source: Nichol & Dhariwal 2021, section 4; "linspace" of Lin et al. 2023, table 2.
    """
    _check(num_steps, steps)
    upwards = np.linspace(0, num_steps - 1, steps) if steps > 1 else np.array([num_steps - 1])
    return np.round(upwards[::-1]).astype(np.int64)


def leading(num_steps: int, steps: int) -> np.ndarray:
    """Returns (steps - 1) k, ..., k, 0 with k = floor(T / steps): ends at 0, but starts below T-1, with signal left.

    Source: DDIM's code (Song et al. 2021); "leading" of Lin et al. 2023, table 2, cut to `steps`.
    """
    _check(num_steps, steps)
    return np.arange(steps)[::-1] * (num_steps // steps)


def trailing(num_steps: int, steps: int) -> np.ndarray:
    """Returns round(T - i T / steps) - 1 for i = 0, 1, ...: starts at T-1 and ends one stride before clean data.

    Source: Lin et al. 2023, table 2 and section 3.3.
    """
    _check(num_steps, steps)
    exact = num_steps * (steps - np.arange(steps)) / steps  # one rounding, so that halves are halves
    return np.round(exact).astype(np.int64) - 1


def log_noise(schedule: Schedule) -> np.ndarray:
    """Returns log(sigma / alpha), half the negative log-SNR: float64 [T], non-decreasing and finite.

    sigma / alpha is capped at 80: beyond it, on the way to pure noise, where it is infinite, steps would be wasted.
    Source: sigma_max of Karras et al. 2022, table 1.
    """
    with np.errstate(divide="ignore"):
        return np.minimum(np.log(schedule.sigma / schedule.alpha), np.log(MAX_NOISE))


def even_in(level: np.ndarray, steps: int) -> np.ndarray:
    """Returns the timesteps nearest to `steps` evenly spaced values of a non-decreasing level[T], from T-1 to 0.

    Where two values share a timestep, the later one moves down; all stay high enough to leave room for the rest.
    """
    _check(len(level), steps)
    targets = np.linspace(level[-1], level[0], steps)
    nearest = np.round(np.interp(targets, level, np.arange(len(level)))).astype(np.int64)
    i = np.arange(steps)
    return np.minimum.accumulate(np.maximum(nearest, steps - 1 - i) + i) - i


def karras(schedule: Schedule, steps: int) -> np.ndarray:
    """Spaces steps evenly in (sigma / alpha)^(1 / 7), most at low noise. Source: Karras et al. 2022, equation 5."""
    return even_in(np.exp(log_noise(schedule) / RHO), steps)


def log_snr(schedule: Schedule, steps: int) -> np.ndarray:
    """Spaces steps evenly in log(alpha^2 / sigma^2). Source: DPM-Solver (Lu et al. 2022)."""
    return even_in(log_noise(schedule), steps)


SPACINGS: dict[str, Callable[[Schedule, int], np.ndarray]] = {
    "linspace": lambda schedule, steps: linspace(schedule.num_steps, steps),
    "leading": lambda schedule, steps: leading(schedule.num_steps, steps),
    "trailing": lambda schedule, steps: trailing(schedule.num_steps, steps),
    "karras": karras,
    "log_snr": log_snr,
}
