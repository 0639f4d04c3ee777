import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_jax.diffusion.objective import (
    PREDICTIONS,
    by_quarter,
    diffusion_loss,
    solvable,
    target_of,
    timestep_at,
    to_x_0_and_eps,
)
from dit_jax.diffusion.schedule import Schedule, linear, rectified

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


def test_targets_are_read_back(make_tables, case):
    name, prediction = case
    schedule, t = make_tables(name), jnp.array([0, 1, 500, 998, 999])
    rng = np.random.default_rng(0)
    x_0, eps = (rng.normal(size=(5, 4, 4, 3)).astype(np.float32) for _ in range(2))
    alpha, sigma = (table[np.asarray(t)].reshape(-1, 1, 1, 1) for table in schedule)
    x_t = jnp.asarray(alpha * x_0 + sigma * eps, jnp.float32)
    target = target_of(schedule, prediction, x_0, eps, t)
    found_x_0, found_eps = jax.jit(lambda out, x: to_x_0_and_eps(schedule, prediction, out, x, t))(target, x_t)
    # One rounding of x_t, 4 * 2^-24, comes back divided by alpha or by sigma where the other is predicted.
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


def test_loss_by_hand():
    """Two images of two pixels; the network says 1 everywhere and the target is eps: means of (1 - eps)^2."""
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


@pytest.mark.parametrize("T", [1, 3, 10, 1000])
def test_every_timestep_has_a_quarter(T):
    sums, counts = by_quarter(jnp.ones(T), jnp.arange(T), T)
    assert counts.sum() == T
    np.testing.assert_array_equal(sums, counts)
    if T == 1000:
        np.testing.assert_array_equal(counts, [250] * 4)
