"""Fidelity and variety of samples, from nearest neighbours among features.

The manifold of a set is the union of balls around its images, each as large as the distance to the image's k-th nearest
neighbour in the same set.
"""

from typing import NamedTuple

import numpy as np

from dit_jax.errors import UserError
from dit_jax.evaluation.distances import blocks, widened

TILE = 2_000  # images on a side; a tile of pairwise distances is 32 MB in float64
# a share of |a|^2 + |b|^2: float32 rounding alone may make the squared distance of equal vectors so large
UNSEEN = float(np.finfo(np.float32).eps) ** 2


class NeighbourScores(NamedTuple):
    """precision, recall, coverage in 0..1; density >= 0, about 1 for samples like the reference.

    precision: share of samples within the reference's manifold; recall: share of the reference within the samples';
    density: mean number of reference balls that a sample lies in, over k; coverage: share of reference balls that
    contain a sample. The rim belongs to a ball for precision and recall, but not for density and coverage, as in their
    authors' code.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(
    reference_ND: np.ndarray, samples_ND: np.ndarray, precision_k: int = 3, density_k: int = 5
) -> NeighbourScores:
    """Returns improved precision and recall with k = `precision_k`, density and coverage with k = `density_k`.

    The time grows with the product of the counts. All four scores depend on the counts, so compare only figures of the
    same counts. A set needs more than k images to have a k-th neighbour.

    Raises UserError for fewer images than that.
    Source: Kynkaanniemi et al. 2019, eq. 1-2 (k = 3); Naeem et al. 2020, eq. 3 and 4 (k = 5).
    """
    _check_counts(len(reference_ND), len(samples_ND), max(precision_k, density_k))
    reference_radii = _squared_radii(reference_ND, (precision_k, density_k))
    (sample_radii,) = _squared_radii(samples_ND, (precision_k,))
    hits = np.zeros(len(samples_ND))  # how many balls with density_k a sample lies in
    precise = np.zeros(len(samples_ND), bool)
    recalled = np.zeros(len(reference_ND), bool)
    covered = np.zeros(len(reference_ND), bool)
    for rows in blocks(len(reference_ND), TILE):
        for columns in blocks(len(samples_ND), TILE):
            squared = squared_distances(reference_ND[rows], samples_ND[columns])
            within = squared < reference_radii[1, rows, None]  # without the rim
            hits[columns] += within.sum(0)
            covered[rows] |= within.any(1)
            precise[columns] |= (squared <= reference_radii[0, rows, None]).any(0)
            recalled[rows] |= (squared <= sample_radii[None, columns]).any(1)
    return NeighbourScores(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(hits.mean() / density_k),
        coverage=float(covered.mean()),
    )


def _check_counts(reference_count: int, sample_count: int, k: int) -> None:
    if min(reference_count, sample_count) <= k:
        raise UserError(
            f"neighbour scores with k = {k} need more than {k} images in each set, "
            f"got {reference_count} reference images and {sample_count} samples: evaluate more"
        )


def squared_distances(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Returns |a|^2 + |b|^2 - 2 a.b of all pairs, float64 [N, M]; 0 if it is too small for float32 to tell."""
    a, b = widened(a_ND), widened(b_MD)
    lengths = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None]
    squared = a @ b.T
    squared *= -2
    squared += lengths
    lengths *= UNSEEN
    squared[squared <= lengths] = 0
    return squared


def _squared_radii(features_ND: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Returns the squared distance of every row to its k-th nearest other row, for every k: float64 [len(ks), N]."""
    count, most = len(features_ND), max(ks)
    nearest = np.full((count, most), np.inf)
    for rows in blocks(count, TILE):
        for columns in blocks(rows.stop, TILE):  # distances are symmetric, so half of the tiles suffice
            squared = squared_distances(features_ND[rows], features_ND[columns])
            if rows == columns:
                np.fill_diagonal(squared, np.inf)  # a row is not its own neighbour
            else:
                nearest[columns] = _smallest(nearest[columns], squared.T)
            nearest[rows] = _smallest(nearest[rows], squared)
    return np.sort(nearest, axis=1)[:, [k - 1 for k in ks]].T


def _smallest(found: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Returns the smallest values in each row of both, as many as `found` has: [N, count], [N, M] -> [N, count]."""
    count = found.shape[1]
    return np.partition(np.concatenate([found, more], axis=1), count - 1, axis=1)[:, :count]
