"""The samplers at run time: the timesteps they visit, the distribution they reach, and their order of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from dit_jax.diffusion import sampling
from dit_jax.diffusion.guidance import denoiser
from dit_jax.diffusion.sampling import (
    SAMPLERS,
    VARIANCES,
    ddim,
    ddpm,
    dpmpp_2m,
    heun,
    image_keys,
    image_noise,
    sample,
)
from dit_jax.diffusion.schedule import linear, rectified
from dit_jax.diffusion.spacing import SPACINGS, leading, linspace, log_snr


def run(denoise, plan, x_T, keys_B=None):
    keys_B = image_keys(jax.random.key(0), jnp.arange(len(x_T))) if keys_B is None else keys_B
    return np.asarray(jax.jit(lambda x, keys: sample(denoise, plan, x, keys))(x_T, keys_B))


def start(n, shape, seed=0):
    return image_noise(image_keys(jax.random.key(seed), jnp.arange(n)), 0, shape)


def visits(plan):
    """Returns the timesteps that the denoiser is given at run time, in order."""
    seen = []

    def denoise(x, t_B):
        io_callback(lambda t: seen.append(t.tolist()), None, t_B, ordered=True)
        return x, x

    run(denoise, plan, jnp.zeros((2, 1, 1, 1)))
    jax.effects_barrier()
    assert all(len(set(t_B)) == 1 for t_B in seen)
    return [t_B[0] for t_B in seen]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("schedule", [linear(1000, 1e-4, 0.02)], ids=["linear"])
def test_visits_exactly_the_last_timestep_down_to_zero(sampler, schedule):
    assert visits(SAMPLERS[sampler](schedule, linspace(1000, 1000), "small", 0.0)) == list(range(999, -1, -1))


@pytest.mark.parametrize("steps", [50, 7, 1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fewer_steps_visit_both_ends_and_even_steps_between(sampler, steps):
    seen = visits(SAMPLERS[sampler](rectified(1000), linspace(1000, steps), "small", 0.0))
    even = [999 * (1 - i / max(steps - 1, 1)) for i in range(steps)]
    if sampler == "heun":  # from t to s: once at t, once at s; the last step, to clean data, only once
        assert len(seen) == 2 * steps - 1
        assert seen[1:-1:2] == seen[2::2]
        seen = seen[::2]
    assert len(seen) == steps
    assert np.abs(np.array(seen) - even).max() <= 0.5
    assert seen[0] == 999
    assert seen[-1] == (0 if steps > 1 else 999)


VISITED = {
    ("leading", 50): list(range(980, -1, -20)),
    ("trailing", 50): list(range(999, 0, -20)),
    ("leading", 7): [852, 710, 568, 426, 284, 142, 0],
    ("trailing", 7): [999, 856, 713, 570, 428, 285, 142],
    # sigma / alpha of rectified flow is (t + 1) / (999 - t), capped at 80; even in its logarithm and its 7th root:
    # 80, 11.98, 1.852, 0.283, 0.0433, 0.0066, 0.001; and 80, 28.6, 8.95, 2.22, 0.382, 0.0363, 0.001.
    ("log_snr", 7): [999, 922, 648, 220, 40, 6, 0],
    ("karras", 7): [999, 966, 899, 689, 275, 34, 0],
}


@pytest.mark.parametrize(("spacing", "steps"), VISITED)
def test_the_other_spacings_are_visited_as_they_are_listed(spacing, steps):
    schedule = rectified(1000)
    seen = visits(ddim(schedule, SPACINGS[spacing](schedule, steps)))
    assert np.abs(np.array(seen) - VISITED[spacing, steps]).max() <= (1 if spacing in ("karras", "log_snr") else 0)


def assert_is(gaussian, images, n_sigma=5, slack=0.0):
    """Asserts the pixels' mean, spread and independence, to the statistical error plus `slack` (in spreads)."""
    n = len(images)
    mean, std = gaussian.mean.ravel(), gaussian.std.ravel()
    flat = images.reshape(n, -1).astype(np.float64)
    assert (np.abs(flat.mean(0) - mean) < std * (n_sigma / np.sqrt(n) + slack)).all()
    assert (np.abs(flat.std(0) / std - 1) < n_sigma / np.sqrt(2 * n) + slack).all()
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < n_sigma / np.sqrt(n) + slack


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_flow_carries_noise_to_gaussian_data(gaussian, make_tables, case, sampler):
    name, prediction = case
    schedule, n = make_tables(name), 4000
    plan = SAMPLERS[sampler](schedule, linspace(1000, 200), "small", 0.0)
    x_T = start(n, (2, 2, 1))
    images = run(gaussian.denoiser(schedule, prediction), plan, x_T)
    assert_is(gaussian, images, slack=0.02)
    # Not only the distribution is right: every pixel ends where the flow's exact solution does.
    exact = gaussian.end_of(schedule, 999, x_T)
    error = np.abs(images - exact).reshape(n, 4).max(0) / gaussian.std.ravel()
    last = 4 * (schedule.sigma[0] / gaussian.std.min()) ** 2 / 2  # the error of Euler's last step, 4 deviations out
    assert error.max() < (0.15 if sampler == "ddim" else 0.005 + last)


@pytest.mark.parametrize("variance", VARIANCES)
def test_ancestral_sampling_carries_noise_to_gaussian_data(gaussian, make_tables, case, variance):
    name, prediction = case
    schedule = make_tables(name, 250)
    plan = ddpm(schedule, linspace(250, 250), variance)
    images = run(gaussian.denoiser(schedule, prediction), plan, start(2000, (2, 2, 1)))
    assert_is(gaussian, images, slack=0.05)


def test_every_sampler_schedule_and_prediction_reaches_the_gaussian(gaussian, make_tables, any_case, run_by_hand):
    """Mean and covariance are the data's; without added noise, each pixel ends where the flow's exact solution does."""
    name, prediction = any_case
    schedule, rng = make_tables(name), np.random.default_rng(0)
    x_T, denoise = rng.normal(size=(1000, 2, 2, 1)), gaussian.denoiser(make_tables(name), prediction)
    for sampler, far in (("ddpm", None), ("ddim", 0.15), ("heun", 0.02), ("dpmpp_2m", 0.02)):
        plan = SAMPLERS[sampler](schedule, log_snr(schedule, 24), "small", 0.0)
        images = run_by_hand(denoise, plan, x_T, lambda draw: rng.normal(size=x_T.shape))
        assert_is(gaussian, images, slack=0.1)
        if far is not None:
            assert np.sqrt(np.square(images - gaussian.end_of(schedule, 999, x_T)).mean()) < far


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_scan_does_what_the_table_says(gaussian, make_tables, sampler, run_by_hand):
    schedule = make_tables("cosine", 60)
    plan = SAMPLERS[sampler](schedule, log_snr(schedule, 9), "small", 0.7)
    denoise, keys, x_T = (
        gaussian.denoiser(schedule, "v"),
        image_keys(jax.random.key(2), jnp.arange(3)),
        start(3, (2, 2, 1)),
    )
    by_hand = run_by_hand(denoise, plan, x_T, lambda draw: np.asarray(image_noise(keys, draw, (2, 2, 1))))
    np.testing.assert_allclose(run(denoise, plan, x_T, keys), by_hand, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "rectified", "zero"])
def test_a_plan_that_starts_with_signal_left_starts_as_loud_as_unit_data(gaussian, make_tables, name):
    """Data N(0, 1): the flow keeps x / sqrt(alpha^2 + sigma^2), so the image is the noise, whatever t is first."""
    unit = gaussian._replace(mean=0 * gaussian.mean, std=0 * gaussian.std + 1)
    schedule, keys = make_tables(name), image_keys(jax.random.key(0), jnp.arange(5))
    plan = heun(schedule, leading(1000, 8))
    assert plan.t[0] == 875
    x = sampling.start(schedule, plan, keys, (2, 2, 1))
    np.testing.assert_allclose(
        run(unit.denoiser(schedule, "v"), plan, x, keys), image_noise(keys, 0, (2, 2, 1)), atol=0.02
    )


def test_from_the_last_timestep_the_start_is_the_noise_itself(make_tables):
    keys = image_keys(jax.random.key(0), jnp.arange(2))
    for name in ("linear", "cosine", "rectified", "zero"):
        x = sampling.start(make_tables(name), ddim(make_tables(name), linspace(1000, 3)), keys, (2, 2, 1))
        np.testing.assert_array_equal(x, image_noise(keys, 0, (2, 2, 1)))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_dpmpp_2m_is_the_papers_algorithm(name, make_tables):
    """Lu et al. 2022, algorithm 2, in lambda = log(alpha / sigma), h and r, for a network that is not linear."""
    schedule = make_tables(name)
    t, x_T = log_snr(schedule, 8), start(3, (2, 2, 1))
    network = lambda x, t_B: jnp.sin(x) * (0.5 + t_B / 1000)[:, None, None, None]  # noqa: E731
    images = run(denoiser(network, schedule, "x0"), dpmpp_2m(schedule, t), x_T)
    lam = np.log(schedule.alpha / schedule.sigma)
    x, previous, h_previous = np.asarray(x_T, np.float64), None, None
    for i in range(7):
        x_0, h = np.sin(x) * (0.5 + t[i] / 1000), lam[t[i + 1]] - lam[t[i]]
        r = h_previous / h if i else None
        D = (1 + 1 / (2 * r)) * x_0 - previous / (2 * r) if i else x_0
        x = schedule.sigma[t[i + 1]] / schedule.sigma[t[i]] * x - schedule.alpha[t[i + 1]] * np.expm1(-h) * D
        previous, h_previous = x_0, h
    np.testing.assert_allclose(images, np.sin(x) * (0.5 + t[7] / 1000), atol=1e-4)  # to clean data: x_0 itself


@pytest.mark.parametrize("name", ["linear", "rectified"])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_error_shrinks_at_the_samplers_order(gaussian, make_tables, name, sampler, order, run_by_hand):
    """Twice the steps give half the error at order 1, a quarter at order 2; the tables are too fine to matter."""
    T = 50_000
    schedule = make_tables(name, T)
    x_T = start(8, (2, 2, 1))
    exact, errors = gaussian.end_of(schedule, T - 1, x_T), []
    for intervals in (16, 32, 64):
        # 2M extrapolates in log-SNR, and shows its order if its steps are of similar length there.
        t = log_snr(schedule, 2 * intervals + 1) if sampler == "dpmpp_2m" else linspace(T, intervals + 1)
        images = run_by_hand(gaussian.denoiser(schedule, "v"), SAMPLERS[sampler](schedule, t, "small", 0.0), x_T)
        errors.append(np.sqrt(np.square(images - exact).mean()))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (np.abs(orders - order) < 0.35).all()


def velocity_field(x, s):
    """Returns a velocity that depends on s and is not linear in x, for NumPy or JAX."""
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.sin(2 * x) + s * x - 0.5


def as_network(x, t_B):
    return velocity_field(x, ((t_B + 1) / 1000)[:, None, None, None])


@pytest.mark.parametrize("steps", [1, 9, 1000])
def test_ddim_on_the_rectified_tables_is_eulers_method(steps):
    t = linspace(1000, steps)
    x_T = start(3, (2, 2, 1))
    images = run(denoiser(as_network, rectified(1000), "velocity"), ddim(rectified(1000), t), x_T)
    x, s = np.asarray(x_T, np.float64), np.append((t + 1) / 1000, 0.0)
    for i in range(steps):
        x = x + (s[i + 1] - s[i]) * velocity_field(x, s[i])
    np.testing.assert_allclose(images, x, atol=2e-5)


def test_heun_on_the_rectified_tables_is_heuns_method():
    """Karras et al. 2022, algorithm 1, with dx / ds = velocity: the last step, to s = 0, is Euler's."""
    t = linspace(1000, 9)
    x_T = start(3, (2, 2, 1))
    images = run(denoiser(as_network, rectified(1000), "velocity"), heun(rectified(1000), t), x_T)
    x, s = np.asarray(x_T, np.float64), np.append((t + 1) / 1000, 0.0)
    for i in range(9):
        first, h = velocity_field(x, s[i]), s[i + 1] - s[i]
        second = velocity_field(x + h * first, s[i + 1]) if s[i + 1] else first
        x = x + h * (first + second) / 2
    np.testing.assert_allclose(images, x, atol=2e-5)


def test_ancestral_sampling_is_the_papers_algorithm_2():
    """Ho et al. 2020: x <- (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + sigma z, z = 0 at the end."""
    beta = np.linspace(0.01, 0.3, 6)
    bar = np.cumprod(1 - beta)
    keys, x_T = image_keys(jax.random.key(5), jnp.arange(2)), start(2, (2, 2, 1))
    denoise = denoiser(lambda x, t: jnp.cos(x) * (1 + t)[:, None, None, None], linear(6, 0.01, 0.3), "eps")
    images = run(denoise, ddpm(linear(6, 0.01, 0.3), np.arange(5, -1, -1), "large"), x_T, keys)
    x = np.asarray(x_T, np.float64)
    for row, t in enumerate(range(5, -1, -1)):
        z = np.asarray(image_noise(keys, row + 1, (2, 2, 1))) if t else 0.0
        eps = np.cos(x) * (1 + t)
        x = (x - beta[t] / np.sqrt(1 - bar[t]) * eps) / np.sqrt(1 - beta[t]) + np.sqrt(beta[t]) * z
    np.testing.assert_allclose(images, x, rtol=1e-4, atol=1e-4)


def test_noise_of_an_image_is_its_own():
    """Image 17 alone, in a batch of five and in another order; other images, draws and seeds differ."""
    key, shape = jax.random.key(3), (4, 4, 3)

    def noise(index, draw=0, key=key):
        return np.asarray(image_noise(image_keys(key, jnp.array(index)), draw, shape))

    alone = noise([17])[0]
    np.testing.assert_array_equal(noise([15, 16, 17, 18, 19])[2], alone)
    np.testing.assert_array_equal(noise([19, 17])[1], alone)
    for other in (noise([18])[0], noise([17], draw=1)[0], noise([17], key=jax.random.key(4))[0]):
        assert abs(np.corrcoef(alone.ravel(), other.ravel())[0, 1]) < 0.6
        assert (alone != other).all()


def test_noise_is_standard_normal():
    values = np.asarray(start(100, (10, 10, 3)), np.float64)
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_in_any_batch(gaussian, make_tables, sampler):
    schedule = make_tables("linear", 100)
    denoise, plan = gaussian.denoiser(schedule, "v"), SAMPLERS[sampler](schedule, linspace(100, 10), "large", 0.0)

    def images(index, seed=0):
        keys = image_keys(jax.random.key(seed), jnp.array(index))
        return run(denoise, plan, image_noise(keys, 0, (2, 2, 1)), keys)

    batch = images([0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(images([5, 40, 3, 41, 42, 43, 44, 45])[0], batch[5])
    # Another shape is another program, in which XLA's vector loops may round the last bit differently.
    np.testing.assert_allclose(images([5])[0], batch[5], rtol=1e-5, atol=1e-6)
    assert len(np.unique(batch.reshape(8, 4), axis=0)) == 8
    assert not np.isclose(images([0, 1, 2, 3, 4, 5, 6, 7], seed=1), batch).any()
