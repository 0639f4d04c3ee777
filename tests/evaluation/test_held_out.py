"""The loss by noise and the bound where both are known: for Gaussian pixels and their optimal denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from dit_jax.diffusion.schedule import Schedule, make_schedule
from dit_jax.evaluation import held_out
from tests import tiny

S = 0.25  # standard deviation of a pixel: four of them reach the edge of [-1, 1]
BETAS = (1e-4, 0.02)


def gaussian_images(count, seed=0):
    """uint8 [count, 4, 4, 3] of N(0, S^2) pixels, rounded to grey levels."""
    x = np.random.default_rng(seed).normal(0, S, (count, 4, 4, 3))
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def best_network(schedule, prediction):
    """Returns the network that predicts from E[x_0 | x_t] = alpha S^2 / (alpha^2 S^2 + sigma^2) x_t."""
    a, s = (jnp.asarray(table, jnp.float32) for table in schedule)

    def apply(params, x_t, t_B, labels_B):
        alpha, sigma = (table[t_B][:, None, None, None] for table in (a, s))
        x_0 = alpha * S**2 / (alpha**2 * S**2 + sigma**2) * x_t
        eps = (x_t - alpha * x_0) / sigma
        return {"eps": eps, "x0": x_0, "velocity": eps - x_0, "v": alpha * eps - sigma * x_0}[prediction]

    return apply


def terms_of(schedule, prediction="eps", count=200, devices=1, batch_size=50, clip=False, apply=None, seed=5):
    predictor = held_out.Predictor(apply or best_network(schedule, prediction), schedule, prediction, clip)
    make = held_out.make_terms(predictor, tiny.mesh(devices), batch_size)
    images = gaussian_images(count)
    return make(None, lambda rows: (images[rows], np.zeros(len(rows), int)), count, seed)


def conditioned(schedule):
    """Returns (weight of x_0 in the mean, variance) of q(x_{t-1} | x_t, x_0), t = 1 .. T-1, from two Gaussians."""
    (a_s, a_t), (s_s, s_t) = ((table[:-1], table[1:]) for table in schedule)
    covariance = a_t / a_s * s_s**2  # of x_{t-1} and x_t, both given x_0
    return a_s - covariance / s_t**2 * a_t, s_s**2 - covariance**2 / s_t**2


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_of_the_best_network_by_bin(prediction):
    """Its error in x_0 has the variance S^2 sigma^2 / (alpha^2 S^2 + sigma^2); in eps, (alpha / sigma)^2 times that."""
    T = 25
    schedule = make_schedule("linear", T, 0.004, 0.8)
    a, s = schedule
    error_x_0 = S**2 * s**2 / (a**2 * S**2 + s**2)
    by_t = {"eps": (a / s) ** 2, "v": 1 / s**2}[prediction] * error_x_0  # v's: (alpha^2 / sigma + sigma)^2 times it
    found = held_out.loss_by_noise(terms_of(schedule, prediction, 2000, 8, 256), T)
    assert found["t_from"] == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    assert found["t_to"] == [2, 5, 7, 10, 12, 15, 17, 20, 22, 25]
    assert found["n"] == [2000] * 10
    expected = [by_t[i:j].mean() for i, j in zip(found["t_from"], found["t_to"], strict=True)]
    np.testing.assert_allclose(found["loss"], expected, rtol=0.03)


def test_draws_depend_on_neither_batch_nor_devices_nor_how_many_images_follow():
    schedule = make_schedule("cosine", 40, *BETAS)
    one = terms_of(schedule, count=21, batch_size=21)
    others = [terms_of(schedule, count=21, batch_size=4, devices=8), terms_of(schedule, count=13, batch_size=5)]
    for other in others:
        n = len(other.t_NM)
        np.testing.assert_array_equal(other.t_NM, one.t_NM[:n])
        for name in ("error_NM", "kl_NM", "decoder_N", "prior_N"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name)[:n], rtol=2e-4)
    apart = terms_of(schedule, count=21, batch_size=21, seed=6)
    assert np.abs(apart.error_NM / one.error_NM - 1).max() > 0.01
    assert len(np.unique(one.error_NM)) == one.error_NM.size  # no two draws are alike


def test_each_bin_of_an_image_has_noise_of_its_own():
    """A network that predicts 0 is wrong by the noise: 48 squared normals have a mean of 1 +- 0.2."""
    silent = lambda params, x_t, t_B, labels_B: 0 * x_t  # noqa: E731
    error_NM = terms_of(make_schedule("linear", 40, *BETAS), count=8, apply=silent).error_NM
    np.testing.assert_allclose(error_NM.mean(), 1, atol=0.1)
    assert (error_NM.std(axis=1) > 0.05).all()


@pytest.mark.parametrize("T", [1000, 25, 10])
def test_timesteps_are_in_their_bins_and_even(T):
    edges, t_NM = held_out.edges(T), held_out.timesteps(5000, T, 3)
    for i in range(10):
        found, counts = np.unique(t_NM[:, i], return_counts=True)
        assert found.tolist() == list(range(edges[i], edges[i + 1]))
        assert np.ptp(counts) <= 8  # of 50 to 5000; independent draws would differ by tens
    assert (edges[0], edges[-1]) == (0, T)


def test_with_fewer_timesteps_than_bins_some_are_empty():
    found = held_out.loss_by_noise(terms_of(make_schedule("linear", 4, 0.1, 0.5)), 4)
    assert [value is None for value in found["loss"]] == [n == 0 for n in found["n"]]
    assert sum(n > 0 for n in found["n"]) == 4


@pytest.mark.parametrize("name", ["linear", "rectified"])
def test_kl_is_that_of_gaussians_whose_means_are_apart(name):
    """With equal variances, the squared distance over twice the variance; for `linear` also by the paper's betas."""
    T = 50
    schedule = make_schedule(name, T, 0.002, 0.4)
    weight, variance = conditioned(schedule)
    np.testing.assert_allclose(held_out.kl_weights(schedule)[1:], weight**2 / (2 * variance), rtol=1e-9)
    assert held_out.kl_weights(schedule)[0] == 0
    assert held_out.decoder_std(schedule) == pytest.approx(np.sqrt(variance[0]), rel=1e-9)
    if name == "linear":  # Ho et al. 2020, equation 7
        beta = np.linspace(0.002, 0.4, T)
        bar = np.cumprod(1 - beta)
        np.testing.assert_allclose(weight, np.sqrt(bar[:-1]) * beta[1:] / (1 - bar[1:]), rtol=1e-9)
        np.testing.assert_allclose(variance, beta[1:] * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-9)


def test_prior_by_hand():
    """q(x_T | x_0) = N(alpha x_0, sigma^2): KL = (alpha^2 x_0^2 + sigma^2 - 1) / 2 - log sigma per value."""
    schedule = make_schedule("linear", 2, 0.5, 0.5)  # alpha^2 = 1/4, sigma^2 = 3/4
    images = np.array([0, 255, 51, 102], np.uint8).reshape(1, 2, 2, 1)  # -1, 1, -0.6, -0.2
    by_hand = 0.5 * (0.25 * (1 + 1 + 0.36 + 0.04) + 4 * (0.75 - 1 - np.log(0.75)))
    np.testing.assert_allclose(held_out.prior_nats(schedule, images), [by_hand], rtol=1e-12)
    x = np.linspace(-8, 8, 400_001)
    q, p = norm.pdf(x, 0.5 * -0.6, np.sqrt(0.75)), norm.pdf(x)
    integral = np.sum(q * np.log(q / p)) * (x[1] - x[0])
    third = held_out.prior_nats(schedule, np.full((1, 1, 1, 1), 51, np.uint8))
    np.testing.assert_allclose(third, [integral], rtol=1e-6)


@pytest.mark.parametrize("std", [0.007, 0.05, 1.0])
def test_the_decoder_is_a_distribution_over_grey_levels(std):
    levels = np.arange(256)
    x = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    for mean in (-1.3, -1.0, -0.123, 0.0, 0.5, 0.999, 1.2):
        nats = np.asarray(held_out.decoder_nats(x, jnp.float32(mean), std), np.float64)
        assert np.exp(-nats).sum() == pytest.approx(1, abs=2e-4)
        low = np.where(levels == 0, -np.inf, (levels - 127.5 - 0.5) / 127.5)
        high = np.where(levels == 255, np.inf, (levels - 127.5 + 0.5) / 127.5)
        share = ndtr((high - mean) / std) - ndtr((low - mean) / std)
        likely = share > 1e-12
        np.testing.assert_allclose(nats[likely], -np.log(share[likely]), rtol=1e-3, atol=2e-4)


def test_the_decoder_far_away_is_finite_and_right():
    """x = 1 with a mean of -1 and 100 standard deviations per unit: scipy's log of the share beyond 2 - 1/255."""
    nats = held_out.decoder_nats(jnp.float32(1), jnp.float32(-1), 0.01)
    assert float(nats) == pytest.approx(-norm.logsf((2 - 1 / 255) / 0.01), rel=1e-5)
    nats = held_out.decoder_nats(jnp.float32(101 / 127.5 - 1), jnp.float32(1), 0.001)
    assert np.isfinite(float(nats))
    assert float(nats) > 1e5


def exact_bound(schedule):
    """Returns the optimal network's [prior, vlb, decoder], bits per value: KLs in closed form, the decoder by scipy."""
    a, s = schedule
    left = S**2 * s**2 / (a**2 * S**2 + s**2)  # E |x_0 - E[x_0 | x_t]|^2
    weight, variance = conditioned(schedule)
    vlb = (weight**2 * left[1:] / (2 * variance)).sum()
    prior = 0.5 * (a[-1] ** 2 * S**2 + s[-1] ** 2 - 1 - 2 * np.log(s[-1]))
    rng = np.random.default_rng(1)
    x = np.round((rng.normal(0, S, 200_000).clip(-1, 1) + 1) * 127.5) / 127.5 - 1
    mean = a[0] * S**2 / (a[0] ** 2 * S**2 + s[0] ** 2) * (a[0] * x + s[0] * rng.normal(size=x.shape))
    high, low = ((x + side / 255 - mean) / np.sqrt(variance[0]) for side in (1, -1))
    share = ndtr(-np.abs(low)) - ndtr(-np.abs(high))  # by symmetry, where both are on one side
    share = np.abs(np.where(low * high < 0, ndtr(high) - ndtr(low), share))
    return np.array([prior, vlb, -np.log(share).mean()]) / np.log(2)


ENTROPY = np.log2(S * np.sqrt(2 * np.pi * np.e) * 127.5)  # of a value, in grey levels
PROCESSES = [("linear", "eps", 100), ("linear", "x0", 400), ("cosine", "v", 400), ("rectified", "velocity", 100)]


@pytest.mark.parametrize(("name", "prediction", "T"), PROCESSES)
def test_the_bound_of_gaussian_pixels_is_the_exact_one(name, prediction, T):
    schedule = make_schedule(name, T, 0.1 / T, 20 / T)
    bits, parts = held_out.bits_per_dim(terms_of(schedule, prediction, 2000, 8, 500), T)
    expected = exact_bound(schedule)
    found = [parts["prior"], parts["vlb"], parts["decoder"]]
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=1e-4)
    assert bits == pytest.approx(sum(found))
    assert abs(bits - expected.sum()) < 5 * parts["standard_error"] + 0.01
    assert bits > ENTROPY


def test_the_standard_error_by_hand():
    """Images of 1, 2 and 6 nats: variance (4 + 1 + 9) / 2, their mean's a third of it. A draw is for 3 timesteps."""
    kl_NM = np.zeros((3, 10))
    kl_NM[2, 4] = 1
    of_images = (kl_NM, kl_NM, kl_NM, np.array([0.5, 1, 2]), np.array([0.5, 1, 1]))
    bits, parts = held_out.bits_per_dim(held_out.Terms(*of_images, values=7), 30)
    assert bits == pytest.approx(3 / (7 * np.log(2)))
    assert parts["standard_error"] == pytest.approx(np.sqrt(7 / 3) / (7 * np.log(2)))
    one = held_out.Terms(*(part[:1] for part in of_images), values=7)
    assert held_out.bits_per_dim(one, 30)[1]["standard_error"] is None


def even_in_log_snr(T, sigma=0.05):
    """Returns a schedule: `sigma` at t = 0, half that SNR at t = 1, then even steps of log-SNR to an SNR of 1e-4."""
    first = (1 - sigma**2) / sigma**2
    snr = np.append(first, np.geomspace(first / 2, 1e-4, T - 1))
    return Schedule(alpha=np.sqrt(snr / (1 + snr)), sigma=np.sqrt(1 / (1 + snr)))


@pytest.mark.medium
def test_with_more_steps_the_bound_nears_the_entropy():
    """Only the steps at t = 1 and 0 lose anything in the limit, by the posterior's variance, which is in closed form.

    The steps above t = 1 sum up to the mutual information of x_0 and x_1 (I-MMSE: Guo et al. 2005).
    """
    above = []
    for T in (10, 50, 400):
        schedule = even_in_log_snr(T)
        snr = (schedule.alpha / schedule.sigma)[:2] ** 2
        left = S**2 / (1 + S**2 * snr)
        ratio = left[0] / held_out.decoder_std(schedule) ** 2
        lost = (ratio - 1 - np.log(ratio)) / 2
        lost += ((snr[0] - snr[1]) * left[1] - np.log((1 + S**2 * snr[0]) / (1 + S**2 * snr[1]))) / 2
        bits = held_out.bits_per_dim(terms_of(schedule, "eps", 3000, 8, 1000), T)[0]
        above.append(bits - ENTROPY - lost / np.log(2))
    assert above[0] > above[1] > abs(above[2])
    assert abs(above[2]) < 0.02


@pytest.mark.medium
def test_a_worse_network_has_a_worse_bound_and_clipping_helps_it():
    schedule = make_schedule("linear", 100, 0.001, 0.2)
    silent = lambda params, x_t, t_B, labels_B: 0 * x_t  # noqa: E731
    best, none, clipped = (
        held_out.bits_per_dim(terms_of(schedule, apply=apply, clip=clip), 100)[0]
        for apply, clip in ((None, False), (silent, False), (silent, True))
    )
    assert best < clipped < none


def test_labels_reach_the_network_with_their_own_images():
    schedule, count = make_schedule("cosine", 20, *BETAS), 11
    told = lambda params, x_t, t_B, labels_B: 0 * x_t + labels_B[:, None, None, None] / 100  # noqa: E731
    make = held_out.make_terms(held_out.Predictor(told, schedule, "x0", False), tiny.mesh(8), 4)
    labels = np.arange(count)
    grey = np.round((labels / 100 + 1) * 127.5).astype(np.uint8)
    read = lambda rows: (np.broadcast_to(grey[rows, None, None, None], (len(rows), 2, 2, 1)), labels[rows])  # noqa: E731
    terms = make(None, read, count, 0)
    assert terms.error_NM.max() < (1.01 / 255) ** 2  # the rounding
    heard = []
    make(jax.numpy.zeros(()), read, count, 0, heard.append)
    assert heard == [8, 11]
