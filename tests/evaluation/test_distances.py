import time
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import scipy.linalg

from dit_jax.errors import UserError
from dit_jax.evaluation import distances
from dit_jax.evaluation.distances import (
    Moments,
    bias_warning,
    class_frechet_distances,
    expected_bias,
    frechet_distance,
    inception_score,
    kid,
    mmd2,
)
from dit_jax.evaluation.evaluate import KEPT
from dit_jax.evaluation.neighbours import neighbour_scores


def gaussian(mean, covariance, count=100):
    """Returns moments with exactly this mean and covariance."""
    return Moments(count, np.array(mean, float), np.array(covariance, float) * (count - 1))


def normal(n, D, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=(n, D))


def test_frechet_distance_of_commuting_covariances():
    """|(1, 2, 2)|^2 + (1 - 2)^2 + (2 - 2)^2 + (3 - 1)^2 = 9 + 5."""
    a = gaussian([0, 0, 0], np.diag([1, 4, 9]))
    b = gaussian([1, 2, 2], np.diag([4, 4, 1]), count=7)
    assert frechet_distance(a, b) == pytest.approx(14, rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """For 2 x 2, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)); here M = A B = [[2, 4], [1, 8]], tr 10, det 12."""
    a, b = gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([0, 0], [[1, 0], [0, 4]])
    expected = 4 + 5 - 2 * np.sqrt(10 + 2 * np.sqrt(12))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_equals_the_formula_with_scipys_square_root():
    x, y = normal(80, 12) @ normal(12, 12, 1), normal(90, 12, 2) @ normal(12, 12, 3) + 1
    A, B = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(A + B - 2 * scipy.linalg.sqrtm(A @ B).real)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_rank_one_covariances_are_exact():
    """A = u u^T, B = v v^T: tr sqrt(A B) = |u . v|. Roots of 49 zeros with rounding errors would be off by 1e-7."""
    u, v = normal(2, 50)
    expected = u @ u + v @ v - 2 * abs(u @ v)
    distance = frechet_distance(gaussian(np.zeros(50), np.outer(u, u)), gaussian(np.zeros(50), np.outer(v, v)))
    assert distance == pytest.approx(expected, rel=1e-13)


def test_fewer_images_than_dimensions():
    """tr sqrt(A B) is also the sum of singular values of X Y^T / sqrt((n - 1)(m - 1)), X and Y centred."""
    x, y = normal(6, 40), normal(9, 40, 1)
    X, Y = (x - x.mean(0)) / np.sqrt(5), (y - y.mean(0)) / np.sqrt(8)
    common = np.linalg.svd(X @ Y.T, compute_uv=False).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.square(X).sum() + np.square(Y).sum() - 2 * common
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 300])
def test_equal_sets_have_no_distance(count):
    moments = Moments.of(normal(count, 60, scale=3))
    assert 0 <= frechet_distance(moments, moments) < 1e-10


def test_sets_without_variance_have_the_distance_of_their_means():
    assert frechet_distance(Moments.of(np.zeros((4, 2))), Moments.of(np.full((3, 2), 2.0))) == 8


def test_streaming_equals_one_batch():
    x = normal(2_500, 7) @ normal(7, 7, 1) + 1_000  # with so large a mean, sums of squares would lose digits
    moments = Moments.empty(7)
    for part in np.split(x, [1, 2, 40, 1_400]):
        moments = moments.update(part)
    assert moments.count == 2_500
    np.testing.assert_allclose(moments.mean_D, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance_DD, np.cov(x.T), rtol=1e-10, atol=1e-10)


def test_parts_merge_in_any_order():
    parts = [Moments.of(normal(n, 3, n) + n) for n in (2, 1, 30, 5)] + [Moments.empty(3)]
    whole = np.concatenate([normal(n, 3, n) + n for n in (2, 1, 30, 5)])
    for order in permutations(parts):
        first, second, third, *rest = order
        merged = first.merge(second).merge(third.merge(rest[0].merge(rest[1])))
        np.testing.assert_allclose(merged.covariance_DD, np.cov(whole.T), rtol=1e-12)
        np.testing.assert_allclose(merged.mean_D, whole.mean(0), rtol=1e-12)


def test_features_may_be_float32_and_are_summed_in_float64():
    x = (normal(5_000, 2) + 4_096).astype(np.float32)
    np.testing.assert_allclose(Moments.of(x).covariance_DD, np.cov(x.astype(np.float64).T), rtol=1e-10)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        frechet_distance(Moments.of(np.ones((1, 2))), Moments.of(np.ones((5, 2))))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    x = normal(5, 2)
    x[3, 1] = value
    for function in (Moments.of, lambda x: kid(x, normal(5, 2))):
        with pytest.raises(UserError, match="NaN or infinity"):
            function(x)


def test_bias_of_many_samples():
    """For unit variances, the means contribute D / n and the covariances D (D + 1) / (4 (n - 1)), up to 1 / n^2.

    The latter is the mean of tr(E^2) / 4, which expands tr(I + S - 2 sqrt(S)); E is the Wishart error of S = I + E.
    """
    reference = gaussian(np.zeros(8), np.eye(8), count=10_000)
    biases = [expected_bias(reference, 400, seed) for seed in range(100)]
    assert np.mean(biases) == pytest.approx(8 / 400 + 8 * 9 / (4 * 399), rel=0.07)


def test_bias_of_two_samples():
    """Their covariance is u u^T with u ~ N(0, I): it contributes D + D - 2 E|u|, E|u| ~ sqrt(D), and the mean D / 2."""
    reference = gaussian(np.zeros(100), np.eye(100), count=10_000)
    biases = [expected_bias(reference, 2, seed) for seed in range(20)]
    assert np.mean(biases) == pytest.approx(50 + 200 - 2 * 10, rel=0.05)


def test_too_few_images_are_warned_of_with_the_bias():
    reference, few = Moments.of(normal(3_000, 30)), Moments.of(normal(20, 30, 1))
    warning = bias_warning(reference, few)
    assert warning is not None
    assert "\n" not in warning
    assert "20 images against 3000" in warning
    assert f"at least about {expected_bias(reference, 20):.3g} apart" in warning
    assert expected_bias(reference, 20) == pytest.approx(frechet_distance(reference, few), rel=0.2)
    assert bias_warning(few, reference) == warning
    # The covariance of n vectors has at most rank n - 1: full rank needs one vector more than there are dimensions.
    assert bias_warning(reference, Moments.of(normal(30, 30))) is not None
    assert bias_warning(reference, Moments.of(normal(31, 30))) is None


def test_distance_by_class_is_that_of_the_class_alone():
    x, y = normal(30, 3), normal(40, 3, 1) + 2
    x_labels, y_labels = np.arange(30) % 3 + 4, np.arange(40) % 4 + 3
    by_class = class_frechet_distances(x, x_labels, y, y_labels)
    assert list(by_class) == [4, 5, 6]
    A, B = np.cov(x[1::3].T), np.cov(y[2::4].T)  # label 5
    step = x[1::3].mean(0) - y[2::4].mean(0)
    expected = step @ step + np.trace(A + B - 2 * scipy.linalg.sqrtm(A @ B).real)
    assert by_class[5] == pytest.approx(expected, rel=1e-9)


def test_a_class_of_fewer_images_than_features_has_the_distance_of_its_covariances():
    x, y = normal(8, 20), normal(30, 20, 1) * 2 + 1
    by_class = class_frechet_distances(x, np.arange(8) % 2, y, np.arange(30) % 2)
    assert by_class[1] == pytest.approx(frechet_distance(Moments.of(x[1::2]), Moments.of(y[1::2])), rel=1e-9)


def test_a_class_without_samples_is_named():
    with pytest.raises(UserError, match="label 1 has 2 reference images and 0 samples"):
        class_frechet_distances(normal(4, 2), np.array([0, 0, 1, 1]), normal(3, 2), np.array([0, 0, 0]))


def test_inception_score_of_certain_and_balanced_predictions_is_the_number_of_classes():
    with np.errstate(divide="ignore"):
        logits = np.log(np.tile(np.eye(10), (7, 1)))
    assert inception_score(logits, splits=1) == (pytest.approx(10, rel=1e-14), None)


def test_inception_score_of_equal_predictions_is_1():
    assert inception_score(np.tile([5.0, 1.0, -200.0], (20, 1)), splits=4) == (pytest.approx(1), pytest.approx(0))


def test_inception_score_with_a_class_that_float64_can_hardly_hold():
    """exp(-744.6) is the smallest float64, and a quarter of it is 0; the rest of the score is that of p = 1."""
    logits = np.array([[0, -744.6], [0, -800], [0, -800], [0, -800]])
    assert inception_score(logits, splits=1).mean == pytest.approx(1, rel=1e-12)


def test_inception_score_by_hand():
    """p = (.9, .1) and (.1, .9), mean (.5, .5): KL = .9 log 1.8 + .1 log .2 for both. Logits may be shifted."""
    logits = np.log([[0.9, 0.1], [0.1, 0.9]]) + np.array([[700.0], [-700.0]])
    expected = 1.8**0.9 * 0.2**0.1
    assert inception_score(logits, splits=1).mean == pytest.approx(expected, rel=1e-12)


def test_samples_in_the_order_of_their_classes_are_shuffled_before_the_split():
    """Ten splits of 100 one-hot rows in order would each see one class and score 1."""
    score = inception_score(np.repeat(np.eye(10) * 50, 10, axis=0), splits=10)
    assert 5 < score.mean < 10
    assert score.std is not None
    assert 0 < score.std < 1


def test_the_score_is_of_ten_splits_and_their_deviation_is_divided_by_their_number(monkeypatch):
    """Splits that score 1, 2 .. 10: mean 5.5, variance (10^2 - 1) / 12, as `np.std` in the code of Salimans et al."""
    seen = []
    monkeypatch.setattr(distances, "_score", lambda rows: seen.append(rows[:, 0]) or float(len(seen)))
    assert inception_score(np.arange(57.0)[:, None]) == (5.5, pytest.approx(np.sqrt(99 / 12)))
    assert sorted(np.concatenate(seen)) == list(range(57))


def test_bad_logits_are_refused():
    for row in ([np.nan, 0], [-np.inf, -np.inf], [np.inf, 0]):
        with pytest.raises(UserError, match="no class is most likely"):
            inception_score(np.array([row, [0, 0]]), splits=1)
    for splits in (0, 3):
        with pytest.raises(UserError, match=f"{splits} splits of 2 images"):
            inception_score(np.zeros((2, 3)), splits)


def test_mmd2_by_hand():
    """The kernel is (0 / 2 + 1)^3 = 1 for a's pair, 1 for b's, and 8, 8, 8, 0 across, mean 6: 1 + 1 - 2 x 6."""
    a, b = np.array([[1, 1], [1, -1]]), np.array([[2, 0], [0, 2]])
    assert mmd2(a, b) == -10


def test_mmd2_of_unequal_counts_by_hand():
    """D = 1: pairs of {0, 1, -1}: 1, 1, 0 (2/3 on average), of {0, 2}: 1; across: 1, 1, 1, 27, 1, -1: 5."""
    assert mmd2(np.array([[0], [1], [-1]]), np.array([[0], [2]])) == pytest.approx(2 / 3 + 1 - 10)


def test_kid_of_one_subset_has_no_standard_error():
    a, b = np.array([[1, 1], [1, -1]]), np.array([[2, 0], [0, 2]])
    assert kid(a, b) == (-10, None)
    assert kid(normal(19, 2), normal(25, 2), subset_size=10).standard_error is None
    assert kid(normal(20, 2), normal(25, 2), subset_size=10).standard_error is not None
    with pytest.raises(UserError, match="at least 2 images"):
        kid(a[:1], b)


def test_kid_takes_disjoint_subsets(monkeypatch):
    seen = []
    monkeypatch.setattr(distances, "mmd2", lambda a, b: seen.append((a, b)) or len(seen))
    score = kid(np.arange(34.0)[:, None], np.arange(30.0)[:, None], subset_size=10, subsets=7)
    for rows in (np.concatenate([pair[i] for pair in seen]).ravel() for i in (0, 1)):
        assert len(rows) == len(set(rows.tolist())) == 30
    assert score == (2, pytest.approx(1 / np.sqrt(3)))  # 1, 2, 3: mean 2, variance 1
    assert kid_subsets(monkeypatch, 50, subset_size=10, subsets=2) == [(10, 10)] * 2


def kid_subsets(monkeypatch, count, **sizes):
    seen = []
    monkeypatch.setattr(distances, "mmd2", lambda a, b: seen.append((len(a), len(b))) or 0.0)
    kid(np.zeros((count, 1)), np.zeros((count, 1)), **sizes)
    return seen


def test_kids_subsets_are_of_1000_images_and_at_most_100(monkeypatch):
    assert kid_subsets(monkeypatch, 2_999) == [(1_000, 1_000)] * 2
    assert kid_subsets(monkeypatch, 101_000) == [(1_000, 1_000)] * 100


def test_kids_standard_error_is_the_spread_over_repetitions():
    scores = [kid(normal(120, 4, 2 * i), normal(120, 4, 2 * i + 1), subset_size=10) for i in range(300)]
    means, errors = np.array(scores).T
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(300)  # unbiased: equal distributions give 0
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(means.std(), rel=0.15)


def test_more_noise_is_further_from_the_floor():
    """Features are a random projection of random images, with a ReLU; the floor compares two sets of real images."""
    rng = np.random.default_rng(0)
    projection = rng.normal(size=(64, 32)) / 8
    images = rng.normal(size=(2, 1_500, 16)) @ rng.normal(size=(16, 64)) / 4  # real ones lie in 16 dimensions

    def features(images, noise):
        return np.maximum((images + noise * rng.normal(size=images.shape)) @ projection, 0)

    real = features(images[0], 0)
    for distance in (lambda x: frechet_distance(Moments.of(real), Moments.of(x)), lambda x: kid(real, x, 500).mean):
        floor, *noisy = [distance(features(images[1], noise)) for noise in (0, 0.5, 1, 2)]
        assert floor < noisy[0] / 2
        assert noisy == sorted(noisy)


@pytest.mark.slow
def test_50_000_inception_features_take_minutes_at_most_and_less_than_2_gb():
    x = np.random.default_rng(0).random((50_000, 2_048), np.float32)
    y = x[::-1] * np.float32(0.9)
    tracemalloc.start()
    start = time.perf_counter()
    fid = frechet_distance(Moments.of(x), Moments.of(y))
    score, _ = kid(x, y), neighbour_scores(x[:KEPT], y[:KEPT])
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.1f} s, {peak / 1e9:.2f} GB beside {(x.nbytes + y.nbytes) / 1e9:.2f} GB of features")
    # Every value is scaled by 0.9: |mean|^2 (0.1)^2 + (0.1)^2 tr A = 0.01 x 2048 (1/4 + 1/12), uniform variables.
    assert fid == pytest.approx(0.01 * 2_048 / 3, rel=0.01)
    assert score.standard_error is not None
    assert seconds < 300  # for slow and busy machines
    assert peak + x.nbytes + y.nbytes < 2e9
