"""Summaries and the names of figures, with a network whose features are the images themselves."""

import numpy as np
import pytest

from dit_jax.evaluation import evaluate
from dit_jax.evaluation.evaluate import accuracy, in_proportion, scores, summarize

NAMES = ("even", "odd")
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (60, 1, 2, 1), dtype=np.uint8)
LABELS = np.arange(60) % 2


def extract(images):
    """Two pixels are the features; the first one's last bit is the class."""
    pixels = images.reshape(len(images), 2)
    return pixels.astype(np.float32), np.eye(2, dtype=np.float32)[pixels[:, 0] % 2]


def summary(images=IMAGES, labels=LABELS, size=60):
    chunks = [images[first : first + size] for first in range(0, len(images), size)]
    return summarize(extract, chunks, len(images), labels)


def test_moments_are_those_of_the_images():
    found, pixels = summary(size=7), IMAGES.reshape(60, 2).astype(float)
    np.testing.assert_allclose(found.moments.mean_D, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.moments.covariance_DD, np.cov(pixels.T), rtol=1e-10)
    np.testing.assert_array_equal(found.features_ND, pixels)


def test_of_a_large_set_some_features_are_kept_with_their_labels(monkeypatch):
    monkeypatch.setattr(evaluate, "KEPT", 20)
    labels = np.arange(60)  # so a label says which image it is
    for size in (7, 60):
        found = summary(labels=labels, size=size)
        assert len(found.features_ND) == len(found.labels_N) == 20
        np.testing.assert_array_equal(found.features_ND, IMAGES.reshape(60, 2)[found.labels_N])
        assert found.count == len(found.logits_NK) == 60
        assert 5 <= (found.labels_N < 30).sum() <= 15  # 10 +- 1.8: from everywhere, as images may be sorted by class


def test_accuracy_by_hand():
    images = np.array([2, 4, 5, 7], np.uint8).reshape(4, 1, 1, 1).repeat(2, axis=2)
    assert accuracy(summary(images, np.array([0, 1, 1, 1]))) == 0.75


@pytest.mark.parametrize(("feature", "distance"), [("inception", "fid"), ("classifier", "fd_classifier")])
def test_a_shifted_set_is_as_far_as_it_was_shifted(feature, distance):
    """Equal covariances: the distance is the squared length of the shift, 3^2 + 4^2."""
    images = IMAGES // 2
    moved = images + np.array([3, 4], np.uint8).reshape(1, 1, 2, 1)
    figures = scores(feature, summary(images), summary(moved), NAMES)
    assert figures[distance] == pytest.approx(25, rel=1e-9)
    assert figures[f"{distance}_by_class"] == pytest.approx({"even": 25, "odd": 25}, rel=1e-9)


def test_figures_of_different_features_share_no_name():
    ours, theirs = (set(scores(feature, summary(), summary(), NAMES)) for feature in ("inception", "classifier"))
    assert not ours & theirs
    assert {"fid", "inception_score", "kid", "precision", "recall", "density", "coverage"} <= ours
    assert all("classifier" in name for name in theirs)


def test_without_labels_what_needs_them_is_left_out():
    figures = scores("classifier", summary(), summary(labels=None), NAMES)
    assert "fd_classifier" in figures
    assert not {"accuracy_classifier", "fd_classifier_by_class"} & set(figures)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_class_of_one_image_is_told_of_either_set(caplog, swapped):
    sets = [summary(), summary(labels=(np.arange(60) == 0).astype(int))]
    figures = scores("classifier", *(reversed(sets) if swapped else sets), NAMES)
    assert "fd_classifier_by_class" not in figures
    assert "fewer than 2" in caplog.text


def test_labels_have_the_shares_of_the_data():
    """By hand: for shares of 3 and 1, class 0 is due at 0.67, 2 and 3.33 of every 4, class 1 at 2, after 0."""
    assert in_proportion(np.array([3, 1]), 9).tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert in_proportion(np.array([0, 2, 2]), 4).tolist() == [1, 2, 1, 2]  # a class without images is not drawn
    np.testing.assert_array_equal(in_proportion(np.full(10, 5_000), 25), np.arange(25) % 10)  # CIFAR-10: in turn
    # Two thirds are of one class, due at 0.75, 2.25, 3.75, ...; each of the ten others is first due at 15.
    assert in_proportion(np.array([20, *[1] * 10]), 12).tolist() == [0] * 10 + [1, 2]
    counts = np.random.default_rng(0).integers(1, 1_000, 30)
    for n in (1, 10, 777):
        drawn = np.bincount(in_proportion(counts, n), minlength=30)
        assert drawn.sum() == n
        assert np.abs(drawn - n * counts / counts.sum()).max() < 1.5


@pytest.mark.parametrize("counts", [[5_000] * 10, [3, 1], [0, 7, 7, 1], [20, *[1] * 10], [10_000, *[50] * 100]])
def test_labels_of_fewer_images_are_the_first_of_those_of_more(counts):
    """So images that were kept can be reused, with their labels."""
    for m in (1, 8, 100, 999):
        np.testing.assert_array_equal(in_proportion(np.array(counts), m), in_proportion(np.array(counts), 1_000)[:m])
