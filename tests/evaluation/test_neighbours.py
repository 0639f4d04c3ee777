import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.evaluation import neighbours
from dit_jax.evaluation.neighbours import neighbour_scores

REFERENCE = np.array([[0], [1], [3], [7], [50], [50.5]])
SAMPLES = np.array([[0.5], [5], [20], [21]])


@pytest.mark.parametrize("tile", [1, 2, 3, 100])
def test_scores_by_hand(monkeypatch, tile):
    """On a line. Radii of the reference, k = 1: 1, 1, 2, 4, .5, .5; k = 2: 3, 2, 3, 6, 43, 43.5.

    Radii of the samples, k = 1: 4.5, 4.5, 1, 1. Precision, k = 1: 0.5 and 5 (on the rim of 3's ball) lie in balls,
    20 and 21 do not. Recall: 0, 1, 3, 7 lie in balls of samples, 50 and 50.5 do not.
    Density, k = 2: 0.5 lies in 3 balls (0, 1, 3), 5 in 2 (3, 7), 20 and 21 in 2 each (50, 50.5): 9 of 2 x 4.
    Coverage: every ball of k = 2 holds a sample.
    """
    monkeypatch.setattr(neighbours, "TILE", tile)
    scores = neighbour_scores(REFERENCE, SAMPLES, precision_k=1, density_k=2)
    assert scores == pytest.approx((0.5, 4 / 6, 9 / 8, 1))


def test_the_two_ks_are_not_mixed_up():
    """k = 2 for precision: all samples lie in balls. The samples' radii are 19.5, 15, 15 and 16.

    So recall: 0, 1, 3, 7 yes; 50 is 29 from 21 and 30 from 20: no. Density, k = 1: 0.5 in 2 balls, 5 in that of 7
    (on the rim of 3's is outside): 3 of 4. Coverage, k = 1: the balls of 0, 1, 7.
    """
    scores = neighbour_scores(REFERENCE, SAMPLES, precision_k=2, density_k=1)
    assert scores == pytest.approx((1, 4 / 6, 3 / 4, 3 / 6))


def test_a_set_against_itself():
    """An image lies in its own ball and in others: k on average, as a ball's k-th neighbour, on its rim, is outside."""
    reference = np.random.default_rng(0).normal(size=(200, 4))
    assert neighbour_scores(reference, reference) == pytest.approx((1, 1, 1, 1))


def test_copies_of_one_image_are_precise_without_recall():
    """Ten copies: a radius of 0 is right, as a copy is another image."""
    reference = np.random.default_rng(0).integers(0, 100, size=(50, 3)).astype(float)
    scores = neighbour_scores(reference, np.tile(reference[:1], (10, 1)))
    assert scores.precision == 1
    assert scores.recall == 1 / 50


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_does_not_part_copies(dtype):
    """All samples are one image of the reference: it alone lies in their balls, whose radii are 0."""
    for seed in range(30):
        reference = np.random.default_rng(seed).normal(size=(20, 64)).astype(dtype)
        scores = neighbour_scores(reference, np.repeat(reference[:1], 10, 0))
        assert (scores.precision, scores.recall) == (1, 1 / 20)


def test_equal_distributions_score_about_1():
    """A ball stays empty if the k nearest of n - 1 reference images and n samples are all reference: about 2^-k.

    And a ball that holds k of the reference holds k samples on average, so the density is 1.
    """
    rng = np.random.default_rng(0)
    scores = neighbour_scores(rng.normal(size=(1_000, 5)), rng.normal(size=(1_000, 5)))
    assert scores.density == pytest.approx(1, abs=0.05)
    assert scores.coverage == pytest.approx(1 - 2**-5, abs=0.02)
    assert scores.precision == pytest.approx(scores.recall, abs=0.05)


def test_the_published_settings_are_the_defaults():
    """Kynkaanniemi et al. 2019: k = 3; Naeem et al. 2020: k = 5."""
    reference, samples = np.random.default_rng(0).normal(size=(2, 60, 3))
    scores = neighbour_scores(reference, samples)
    for k in range(2, 7):
        other = neighbour_scores(reference, samples, precision_k=k, density_k=k)
        assert (other[:2] == scores[:2]) == (k == 3)
        assert (other[2:] == scores[2:]) == (k == 5)


def test_too_few_images():
    with pytest.raises(UserError, match="more than 5 images in each set, got 6 reference images and 4 samples"):
        neighbour_scores(REFERENCE, SAMPLES)
