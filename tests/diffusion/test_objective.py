import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_jax.diffusion.objective import (
    PREDICTIONS,
    by_quarter,
    diffusion_loss,
    loss_weights,
    solvable,
    stratify,
    target_of,
    timestep_at,
    to_x_0_and_eps,
)
from dit_jax.diffusion.schedule import Schedule, linear, make_schedule, rectified

# x_t = 0.8 x_0 + 0.6 eps at t = 0, and 0.6 x_0 + 0.8 eps at t = 1.
TABLES = Schedule(alpha=np.array([0.8, 0.6]), sigma=np.array([0.6, 0.8]))


def pixel(*values):
    return jnp.array(values, jnp.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("eps", [10.0, 10.0]),
        ("x0", [5.0, 5.0]),
        ("v", [0.8 * 10 - 0.6 * 5, 0.6 * 10 - 0.8 * 5]),  # alpha eps - sigma x_0 (Salimans & Ho 2022)
        ("velocity", [10.0 - 5.0, 10.0 - 5.0]),  # d x_t / d s of a straight line
    ],
)
def test_targets_by_hand(prediction, expected):
    out = target_of(TABLES, prediction, pixel(5, 5), pixel(10, 10), jnp.array([0, 1]))
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-6)


def test_there_are_four_predictions():
    assert set(PREDICTIONS) == {"eps", "x0", "v", "velocity"}


def test_targets_are_read_back(make_tables, any_case):
    name, prediction = any_case
    schedule, t = make_tables(name), jnp.array([0, 1, 500, 998, 999])
    rng = np.random.default_rng(0)
    x_0, eps = (rng.normal(size=(5, 4, 4, 3)).astype(np.float32) for _ in range(2))
    alpha, sigma = (table[np.asarray(t)].reshape(-1, 1, 1, 1) for table in schedule)
    x_t = jnp.asarray(alpha * x_0 + sigma * eps, jnp.float32)
    target = target_of(schedule, prediction, x_0, eps, t)
    found_x_0, found_eps = to_x_0_and_eps(schedule, prediction, target, x_t, t)
    # The rounding error of x_t, 4 * 2^-24, is divided by alpha if eps is predicted, or by sigma if x_0 is.
    unit = 16 * 2.0**-24
    assert (np.abs(found_x_0 - x_0) < unit * (1 + (1 / alpha if prediction == "eps" else 1))).all()
    assert (np.abs(found_eps - eps) < unit * (1 + (1 / sigma if prediction == "x0" else 1))).all()


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity"])
def test_solvable_everywhere(prediction):
    assert solvable(linear(1000, 1e-4, 0.02), prediction)
    assert solvable(rectified(1000), prediction)


def test_noise_prediction_is_refused_where_no_signal_is_left():
    assert solvable(linear(1000, 1e-4, 0.02), "eps")
    assert not solvable(rectified(1000), "eps")  # alpha = 0 at the end (Lin et al. 2023)
    for name in ("linear", "cosine", "sigmoid"):
        assert solvable(make_schedule(name, 1000, 1e-4, 0.02), "eps")
        assert not solvable(make_schedule(name, 1000, 1e-4, 0.02, zero_terminal_snr=True), "eps")


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x0", [1.0, 0.5625]),  # min(SNR, 1); SNR = 0.64 / 0.36 = 16 / 9, and 9 / 16
        ("eps", [0.5625, 1.0]),  # / SNR
        ("v", [0.36, 0.36]),  # / (SNR + 1)
        ("velocity", [0.36 / 1.96, 0.36 / 1.96]),  # sigma^2 / (alpha + sigma)^2 = 0.36 / 1.96, and 0.64 / 1.96
    ],
)
def test_min_snr_weights_by_hand(prediction, expected):
    """Hang et al. 2023, with gamma = 1: weights of the x_0, the eps and the v loss; and of the flow's velocity."""
    np.testing.assert_allclose(loss_weights(TABLES, prediction, "min_snr", 1.0), expected, rtol=1e-12)
    np.testing.assert_array_equal(loss_weights(TABLES, prediction, "uniform", 1.0), [1, 1])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x0", [1 / 0.36, 1 / 0.64]),  # 1 / sigma^2
        ("v", [1.0, 1.0]),  # alpha^2 + sigma^2 = 1 here, so v's own error
        ("velocity", [1 / 1.96, 1 / 1.96]),  # an error of the flow's velocity is (alpha + sigma) / sigma of x_0's
    ],
)
def test_velocity_weights_by_hand(prediction, expected):
    """Li & He 2025: the loss of v, whatever is predicted."""
    np.testing.assert_allclose(loss_weights(TABLES, prediction, "velocity", 1.0), expected, rtol=1e-12)


def test_velocity_weights_of_a_rectified_flow():
    """x_t = (1 - s) x_0 + s eps: an error e in x_0 is one of e / s in the velocity; below 0.05, s counts as 0.05."""
    weights = loss_weights(rectified(100), "x0", "velocity", 1.0)
    s = np.arange(1, 101) / 100
    np.testing.assert_allclose(weights[4:], 1 / s[4:] ** 2, rtol=1e-12)
    np.testing.assert_allclose(weights[:4], 400, rtol=1e-12)
    np.testing.assert_allclose(loss_weights(rectified(100), "velocity", "velocity", 1.0)[4:], 1, rtol=1e-12)


@pytest.mark.parametrize("weighting", ["min_snr", "velocity"])
def test_one_error_counts_alike_in_every_prediction(make_tables, any_case, weighting):
    """An error of 0.1 in x_0, so of -0.1 alpha / sigma in eps: 0.01 min(SNR, 5), or 0.01 / max(sigma, 0.05)^2."""
    name, prediction = any_case
    schedule = make_tables(name, 100)
    t = np.array([0, 10, 50, 90, 98])
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    as_image = lambda values: jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)  # noqa: E731
    truth = target_of(schedule, prediction, as_image(0 * alpha), as_image(0 * alpha), t)
    guess = target_of(schedule, prediction, as_image(0 * alpha + 0.1), as_image(-0.1 * alpha / sigma), t)
    weighted = loss_weights(schedule, prediction, weighting, 5.0)[t] * np.square(guess - truth).ravel()
    expected = {"min_snr": np.minimum(alpha**2 / sigma**2, 5), "velocity": 1 / np.maximum(sigma, 0.05) ** 2}
    np.testing.assert_allclose(weighted, expected[weighting] * 0.01, rtol=1e-4)


def test_weights_are_finite_and_min_snr_is_zero_at_pure_noise(make_tables):
    for name in ("rectified", "zero"):
        for prediction in ("x0", "v", "velocity"):
            weights = loss_weights(make_tables(name), prediction, "min_snr", 5.0)
            assert np.isfinite(weights).all()
            assert (weights[:-1] > 0).all()
            assert weights[-1] == 0
            weights = loss_weights(make_tables(name), prediction, "velocity", 5.0)
            assert (weights > 0).all()
            assert (weights <= 400).all()


def draw(T, sampling, mean=0.0, std=1.0, n=20_000):
    t = jax.jit(lambda u: timestep_at(u, T, sampling, mean, std))(jax.random.uniform(jax.random.key(0), (n,)))
    assert t.dtype == jnp.int32
    return np.asarray(t)


def test_uniform_timesteps_are_even_from_0_to_the_last():
    counts = np.bincount(draw(7, "uniform"), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-4
    t = draw(1000, "uniform", n=50_000)
    assert (t.min(), t.max()) == (0, 999)
    assert stats.kstest((t + 0.5) / 1000, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 1.0), (-1.0, 0.5)])
def test_logit_normal_timesteps_against_scipy(mean, std):
    """P(t < k) = P(sigmoid(N(mean, std^2)) < k / T) = Phi((logit(k / T) - mean) / std)."""
    T, n = 1000, 20_000
    t = draw(T, "logit_normal", mean, std, n)
    for k in (50, 100, 250, 400, 500, 600, 750, 900, 950):
        expected = stats.norm.cdf(np.log(k / (T - k)), mean, std)
        assert abs((t < k).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-9


def test_logit_normal_timesteps_stay_inside():
    """sigmoid rounds to 1 in float32 beyond 17, which must not become t = T."""
    assert draw(10, "logit_normal", mean=30.0, n=100).max() == 9
    assert draw(10, "logit_normal", mean=-30.0, n=100).min() == 0


def test_stratified_draws_by_hand():
    """Four images, each in its quarter; and position 2 of 3 with u = 0 or just below 1."""
    np.testing.assert_allclose(stratify(jnp.full(4, 0.5), jnp.arange(4), 4), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(stratify(jnp.array([0.0, 0.999999]), jnp.array([2, 2]), 3), [2 / 3, 1], rtol=1e-5)


def curve(t, schedule):
    """Returns the optimal network's loss on N(0, 1/4) images at each t: the variance of eps given x_t."""
    power = 0.25 * schedule.alpha**2
    return (power / (power + schedule.sigma**2))[t]


def draw_batches(sampling, stratified, n=4000, B=16, T=1000):
    u = jax.random.uniform(jax.random.key(1), (n, B))
    u = stratify(u, jnp.broadcast_to(jnp.arange(B), (n, B)), B) if stratified else u
    return np.asarray(timestep_at(u, T, sampling, 0.0, 1.0))


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_stratified_timesteps_steady_the_mean_loss(sampling):
    """The mean loss of a batch has the variance Var F / B for free draws, with F(u) the loss at the u-quantile of t.
    For one draw in each of B strata, it is the mean variance of F within a stratum / B, far less. The mean is the same.
    """
    schedule, B = linear(1000, 1e-4, 0.02), 16
    free, even = (curve(draw_batches(sampling, stratified), schedule).mean(1) for stratified in (False, True))
    u = (np.arange(20_000) + 0.5) / 20_000
    s = u if sampling == "uniform" else 1 / (1 + np.exp(-stats.norm.ppf(u)))
    F = np.interp(1000 * s - 0.5, np.arange(1000), curve(np.arange(1000), schedule))
    strata = F.reshape(B, -1).var(1).sum() / B**2  # the exact variance of one draw in each stratum
    assert free.var() == pytest.approx(F.var() / B, rel=0.1)
    assert even.var() == pytest.approx(strata, rel=0.1)
    assert even.var() < free.var() / 10
    assert abs(even.mean() - F.mean()) < 1e-3
    # Over many batches the timesteps are those of free draws.
    a, b = (np.histogram(draw_batches(sampling, kind), 10, (0, 1000))[0] for kind in (False, True))
    assert (np.abs(a - b) < 5 * np.sqrt(a + b)).all()


def test_loss_by_hand():
    """Two images of two pixels; the network predicts 1 everywhere and the target is eps: means of (1 - eps)^2."""
    x_0 = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 1, 2, 1)
    eps = jnp.array([[0.0, 3.0], [1.0, 5.0]]).reshape(2, 1, 2, 1)
    seen = []

    def predict(x_t, t_B):
        seen.append((x_t, t_B))
        return jnp.ones_like(x_t)

    loss = diffusion_loss(predict, TABLES, "eps", x_0, eps, jnp.array([0, 1]))
    np.testing.assert_allclose(loss, [(1 + 4) / 2, (0 + 16) / 2], rtol=1e-6)
    ((x_t, t_B),) = seen
    np.testing.assert_allclose(x_t.ravel(), [0.8, 1.6 + 1.8, 1.8 + 0.8, 2.4 + 4.0], rtol=1e-6)
    np.testing.assert_array_equal(t_B, [0, 1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_a_perfect_network_is_zero_and_of_a_half_precision_one_is_float32(prediction):
    x_0, eps, t = pixel(0.5, -0.25), pixel(-1.0, 2.0), jnp.array([0, 1])
    answer = target_of(TABLES, prediction, x_0, eps, t)
    np.testing.assert_array_equal(diffusion_loss(lambda x, t: answer, TABLES, prediction, x_0, eps, t), 0)
    off = diffusion_loss(lambda x, t: answer + 2, TABLES, prediction, x_0, eps, t)
    np.testing.assert_allclose(off, 4, rtol=1e-5)
    half = diffusion_loss(lambda x, t: jnp.zeros_like(x, jnp.bfloat16), TABLES, prediction, x_0, eps, t)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, jnp.square(answer).ravel(), rtol=1e-6)


def test_quarters_by_hand():
    """T = 8: timesteps 0-1, 2-3, 4-5 and 6-7."""
    sums, counts = by_quarter(jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), jnp.array([0, 1, 2, 7, 6]), 8)
    np.testing.assert_array_equal(sums, [3, 4, 0, 24])
    np.testing.assert_array_equal(counts, [2, 1, 0, 2])


def test_a_loss_that_is_not_finite_stays_in_its_own_quarter():
    """A product with 0 would make all of them NaN, except where XLA compiles it to a select, as it does on CPUs."""
    sums, counts = by_quarter(jnp.array([jnp.nan, 1.0, jnp.inf, 3.0]), jnp.array([0, 5, 10, 19]), 20)
    np.testing.assert_array_equal(sums, [np.nan, 1, np.inf, 3])
    np.testing.assert_array_equal(counts, [1, 1, 1, 1])


@pytest.mark.parametrize("T", [1, 3, 10, 1000])
def test_every_timestep_has_a_quarter(T):
    sums, counts = by_quarter(jnp.ones(T), jnp.arange(T), T)
    assert counts.sum() == T
    np.testing.assert_array_equal(sums, counts)
    if T == 1000:
        np.testing.assert_array_equal(counts, [250] * 4)
