"""Nearest training images: by hand, against all distances at once, and what a memorised sample scores."""

import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.evaluation import memorisation
from dit_jax.evaluation.memorisation import NearestSearch, memorisation_ratio, memorisation_scores, pixels


def found(views, chunks, k):
    search = NearestSearch(views, k)
    for chunk in chunks:
        search.update(chunk)
    return search


@pytest.mark.parametrize("values", [1, 6, 1 << 22])
def test_nearest_by_hand(monkeypatch, values):
    """On a line, in three chunks; 1 and 9 are equally far from 5, so the one that came first is first."""
    monkeypatch.setattr(memorisation, "VALUES", values)
    search = found(
        [np.array([[5], [0]])], [np.array([[9.0], [100]]), np.array([[1.0], [5.5]]), np.array([[-1.0]])], k=3
    )
    np.testing.assert_array_equal(search.distances_NK, [[0.5, 4, 4], [1, 1, 5.5]])
    assert search.indices_NK.tolist() == [[3, 0, 2], [2, 4, 3]]
    assert search.seen == 5


def test_the_first_of_many_equal_vectors_are_the_nearest():
    """NumPy's unstable sorts keep the order of up to sixteen, so there are more; ties are ordered by place."""
    values = np.random.default_rng(0).integers(0, 3, 400)
    search = found([np.zeros((1, 1))], [part[:, None].astype(float) for part in np.split(values, 4)], k=200)
    assert search.indices_NK.tolist() == [sorted(range(400), key=lambda i: (values[i], i))[:200]]


def test_fewer_than_k():
    search = found([np.zeros((2, 3))], [np.ones((4, 3))], k=50)
    np.testing.assert_allclose(search.distances_NK, np.full((2, 4), np.sqrt(3)))


def test_fifty_neighbours_unless_asked_otherwise():
    """Carlini et al. 2023, section 5.1, n = 50; with neighbours at 1, 2 .. 50 the ratio is 1 / 25.5."""
    search = NearestSearch([np.zeros((1, 1))])
    search.update(np.arange(1.0, 61)[:, None])
    np.testing.assert_array_equal(search.distances_NK, [np.arange(1, 51)])
    np.testing.assert_allclose(memorisation_ratio(search.distances_NK), [1 / 25.5])


def test_as_all_distances_at_once(monkeypatch):
    """For any blocks and chunks, and exactly, as the squared distances of bytes are whole numbers."""
    rng = np.random.default_rng(0)
    queries, stream = (rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in (7, 300))
    all_squared = np.square(queries[:, None].astype(int) - stream[None].astype(int)).sum((2, 3, 4))
    monkeypatch.setattr(memorisation, "VALUES", 48 * 17)
    search = found([pixels(queries)], [pixels(stream[i : i + 40]) for i in range(0, 300, 40)], k=20)
    np.testing.assert_array_equal(search.squared_NK, np.sort(all_squared)[:, :20])
    np.testing.assert_array_equal(np.take_along_axis(all_squared, search.indices_NK, 1), search.squared_NK)


def test_the_nearest_view_counts():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    mirrored = image[:, :, ::-1]
    assert found([pixels(image)], [pixels(mirrored)], k=1).distances_NK > 0
    assert found([pixels(image), pixels(mirrored)], [pixels(mirrored)], k=1).distances_NK == 0


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="NaN"):
        found([np.zeros((1, 2))], [np.array([[0.0, np.nan]])], k=1)


def test_ratio_by_hand():
    """1 / mean(1, 2, 3); then equally far from all, a copy, and a copy of an image that occurs k times."""
    distances = np.array([[1.0, 2, 3], [5, 5, 5], [0, 4, 5], [0, 0, 0]])
    np.testing.assert_array_equal(memorisation_ratio(distances), [0.5, 1, 0, 0])


def test_scores_by_hand():
    """Ratios 0.5, 1, 0, 3 / 11; rows 3 and 4 (1 < 4 / 3) have their nearest below a third of the second distance."""
    scores = memorisation_scores(np.array([[1.0, 2, 3], [5, 5, 5], [0, 4, 5], [1, 4, 6]]))
    assert (scores.n, scores.neighbours) == (4, 3)
    assert scores.median == pytest.approx((0.5 + 3 / 11) / 2)
    assert (scores.lowest, scores.half_share, scores.third_share) == (0, 0.5, 0.5)


def test_what_is_learnt_by_heart_stands_out():
    """Samples that are training images with a little noise stand out; new ones score as other new ones do."""
    rng = np.random.default_rng(0)
    train, new, others = (rng.normal(size=(n, 30)) for n in (2_000, 100, 100))
    copies = train[:100] + 0.01 * rng.normal(size=(100, 30))
    copied, fresh, floor = (
        memorisation_scores(found([queries], [train], 50).distances_NK) for queries in (copies, new, others)
    )
    assert copied.half_share == copied.third_share == 1
    assert fresh.half_share == fresh.third_share == 0
    assert fresh.median == pytest.approx(floor.median, abs=0.03)
