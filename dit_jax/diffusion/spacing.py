"""Which timesteps a sampler visits: int [steps], falling, none twice; ValueError for more steps than there are.

Papers count timesteps 1 .. T and we 0 .. T-1, so each is theirs minus one.
"""

from collections.abc import Callable

import numpy as np

from dit_jax.diffusion.schedule import Schedule

RHO, MAX_NOISE = 7.0, 80.0  # Karras et al. 2022, table 1


def _check(num_steps: int, steps: int) -> None:
    if not 1 <= steps <= num_steps:
        raise ValueError(f"{steps} steps over {num_steps} timesteps: none is visited twice, so use 1 to {num_steps}")


def linspace(num_steps: int, steps: int) -> np.ndarray:
    """Evenly from T-1 to 0, both ends visited; one step is T-1.

    Halves are rounded as diffusers does, which counts upwards; improved DDPM's code, which adds strides up, may differ
    by one there. Source: Nichol & Dhariwal 2021, section 4; "linspace" of Lin et al. 2023, table 2.
    """
    _check(num_steps, steps)
    upwards = np.linspace(0, num_steps - 1, steps) if steps > 1 else np.array([num_steps - 1])
    return np.round(upwards[::-1]).astype(np.int64)


def leading(num_steps: int, steps: int) -> np.ndarray:
    """(steps - 1) k, ..., k, 0 with k = floor(T / steps): ends at 0 and starts short of T-1, where signal is left.

    Source: DDIM's code (Song et al. 2021); "leading" of Lin et al. 2023, table 2, cut to `steps`.
    """
    _check(num_steps, steps)
    return np.arange(steps)[::-1] * (num_steps // steps)


def trailing(num_steps: int, steps: int) -> np.ndarray:
    """round(T - i T / steps) - 1 for i = 0, 1, ...: starts at T-1 and ends a stride above clean data.

    Source: Lin et al. 2023, table 2 and section 3.3.
    """
    _check(num_steps, steps)
    return np.round(num_steps - np.arange(steps) * (num_steps / steps)).astype(np.int64) - 1


def log_noise(schedule: Schedule) -> np.ndarray:
    """log(sigma / alpha), half the negative log-SNR: float64 [T], never falling and finite.

    sigma / alpha above 80 counts as 80: the rest of the way to pure noise, where it is infinite, is worth no step.
    Source: sigma_max of Karras et al. 2022, table 1.
    """
    with np.errstate(divide="ignore"):
        return np.minimum(np.log(schedule.sigma / schedule.alpha), np.log(MAX_NOISE))


def even_in(level: np.ndarray, steps: int) -> np.ndarray:
    """The timesteps nearest to `steps` even values of a level[T] that never falls, from T-1 to 0.

    Where two values share a timestep, the later one moves down, and all keep room for those that follow.
    """
    _check(len(level), steps)
    targets = np.linspace(level[-1], level[0], steps)
    nearest = np.round(np.interp(targets, level, np.arange(len(level)))).astype(np.int64)
    i = np.arange(steps)
    return np.minimum.accumulate(np.maximum(nearest, steps - 1 - i) + i) - i


def karras(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly in (sigma / alpha)^(1 / 7): most steps at little noise. Source: Karras et al. 2022, equation 5."""
    return even_in(np.exp(log_noise(schedule) / RHO), steps)


def log_snr(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly in log(alpha^2 / sigma^2). Source: DPM-Solver (Lu et al. 2022)."""
    return even_in(log_noise(schedule), steps)


SPACINGS: dict[str, Callable[[Schedule, int], np.ndarray]] = {
    "linspace": lambda schedule, steps: linspace(schedule.num_steps, steps),
    "leading": lambda schedule, steps: leading(schedule.num_steps, steps),
    "trailing": lambda schedule, steps: trailing(schedule.num_steps, steps),
    "karras": karras,
    "log_snr": log_snr,
}
