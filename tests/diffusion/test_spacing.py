import math
from fractions import Fraction

import numpy as np
import pytest

from dit_jax.diffusion.schedule import SCHEDULES, linear, make_schedule, rectified
from dit_jax.diffusion.spacing import SPACINGS, leading, linspace, trailing

DDPM = linear(1000, 1e-4, 0.02)


def test_linspace_by_hand():
    assert linspace(1000, 1).tolist() == [999]
    assert linspace(1000, 2).tolist() == [999, 0]
    assert linspace(1000, 4).tolist() == [999, 666, 333, 0]
    assert linspace(1, 1).tolist() == [0]


def test_the_papers_table():
    """Lin et al. 2023, table 2: T = 1000 in 10 steps; the paper's timesteps are ours plus one."""
    papers = {
        "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
        "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
        "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    }
    for name, timesteps in papers.items():
        assert (SPACINGS[name](DDPM, 10) + 1).tolist() == timesteps


def test_seven_steps_by_hand():
    """A seventh of 1000 is 142.857; leading steps by 142, trailing rounds 857.1, 714.3, ... and subtracts one."""
    assert leading(1000, 7).tolist() == [852, 710, 568, 426, 284, 142, 0]
    assert trailing(1000, 7).tolist() == [999, 856, 713, 570, 428, 285, 142]


def test_trailing_rounds_exact_halves_to_even():
    """Against fractions: with T = 1000 and 240 steps, number 195 is 187.5, rounded to 188, minus one."""
    for num_steps, steps in ((1000, 240), (1000, 48), (27, 26), (4000, 1000)):
        exact = [round(Fraction(num_steps * (steps - i), steps)) - 1 for i in range(steps)]
        assert trailing(num_steps, steps).tolist() == exact
    assert trailing(1000, 240)[195] == 187
    assert linspace(1000, 7).tolist() == [999, 832, 666, 500, 333, 166, 0]


def levels(name, schedule):
    """Returns the quantity that is evenly spaced, with sigma / alpha capped at 80, for each timestep."""
    ratio = [min(s / a, 80.0) if a else 80.0 for a, s in zip(*schedule, strict=True)]
    return [r ** (1 / 7) if name == "karras" else math.log(r) for r in ratio]


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("schedule", [DDPM, rectified(1000)], ids=["linear", "rectified"])
@pytest.mark.parametrize("steps", [7, 50])
def test_even_levels_by_brute_force(name, schedule, steps):
    """Karras et al. 2022, equation 5 with rho = 7, and even log-SNR: the nearest timestep, or the next one free."""
    level = levels(name, schedule)
    left = [0]
    for i in range(1, steps):
        target = level[0] + (level[-1] - level[0]) * i / (steps - 1)
        nearest = min(range(1000), key=lambda t: abs(level[t] - target))
        left.append(nearest if i < steps - 1 else 999)
    visited = SPACINGS[name](schedule, steps)
    assert visited[0] == 999
    assert visited[-1] == 0
    clear = [i for i in range(steps) if left.count(left[i]) == 1 and left[i] > steps]  # where no timestep is shared
    assert len(clear) > steps / 2
    assert all(visited[::-1][i] == left[i] for i in clear)
    assert np.abs(visited[::-1] - left).max() <= 3


def test_even_levels_by_hand():
    """Rectified T = 9: sigma / alpha = 1/8, 2/7, ..., 8, and 80 at the end; in 3 steps the middle is nearest to
    sqrt(80 / 8) = 3.2: 7/2 at t = 6 (2 at t = 5). (80^(1/7) + (1/8)^(1/7)) / 2 = 1.306, ^7 = 6.5: 8 at t = 7.
    """
    assert SPACINGS["log_snr"](rectified(9), 3).tolist() == [8, 6, 0]
    assert SPACINGS["karras"](rectified(9), 3).tolist() == [8, 7, 0]


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_spacing_falls_from_its_start_and_visits_no_timestep_twice(name, schedule):
    for T in (1, 2, 3, 10, 41):
        table = make_schedule(schedule, T, 1e-4, 0.02)
        for steps in range(1, T + 1):
            t = SPACINGS[name](table, steps)
            assert t.dtype == np.int64
            assert len(t) == steps
            assert (np.diff(t) < 0).all()
            assert t[0] == ((steps - 1) * (T // steps) if name == "leading" else T - 1)
            if name == "trailing":
                assert t[-1] + 1 == round(T - (steps - 1) * T / steps)
            elif steps > 1:
                assert t[-1] == 0
        assert SPACINGS[name](table, T).tolist() == list(range(T - 1, -1, -1))


def test_linspace_is_even():
    for T in range(2, 41):
        for steps in range(2, T + 1):
            exact = [(T - 1) * (1 - i / (steps - 1)) for i in range(steps)]
            assert np.abs(linspace(T, steps) - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [0, 6])
def test_more_steps_than_timesteps(name, steps):
    with pytest.raises(ValueError, match=f"{steps} steps over 5 timesteps: .* use 1 to 5"):
        SPACINGS[name](rectified(5), steps)
