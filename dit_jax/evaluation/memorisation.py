"""Measures how close samples are to training images, compared with how close unseen real images are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from dit_jax.evaluation.distances import blocks, widened
from dit_jax.evaluation.neighbours import squared_distances

NEIGHBOURS = 50  # Carlini et al. 2023, section 5.1
VALUES = 1 << 22  # float64 numbers in a block, 32 MB: of training vectors, and of their distances


@dataclass
class NearestSearch:
    """Finds the `k` vectors of a stream nearest to each of N queries, in memory that does not grow with the stream.

    views_VND: V versions of each query, such as an image and its mirror image; the nearest one counts. `distances_NK`
    (Euclidean, float64, ascending) and `indices_NK` (positions in the stream; the first of equal ones) have
    K = min(k, seen).
    """

    views_VND: Sequence[np.ndarray]
    k: int = NEIGHBOURS
    seen: int = 0
    squared_NK: np.ndarray = field(init=False)
    indices_NK: np.ndarray = field(init=False)

    def __post_init__(self):
        self.views_VND = [widened(view_ND) for view_ND in self.views_VND]
        self.squared_NK = np.empty((len(self.views_VND[0]), 0))
        self.indices_NK = np.empty((len(self.views_VND[0]), 0), np.int64)

    def update(self, vectors_MD: np.ndarray) -> None:
        """Processes the next vectors of the stream."""
        N, D = self.views_VND[0].shape
        for rows in blocks(len(vectors_MD), max(1, VALUES // max(N, D))):
            block_MD = vectors_MD[rows]
            squared = reduce(np.minimum, (squared_distances(view_ND, block_MD) for view_ND in self.views_VND))
            indices = np.broadcast_to(np.arange(self.seen, self.seen + len(block_MD)), squared.shape)
            self._keep(np.concatenate([self.squared_NK, squared], 1), np.concatenate([self.indices_NK, indices], 1))
            self.seen += len(block_MD)

    def _keep(self, squared: np.ndarray, indices: np.ndarray) -> None:
        """Keeps the k smallest of each row; candidates are in stream order, which a stable sort preserves."""
        if squared.shape[1] > self.k:
            bound = np.partition(squared, self.k - 1, axis=1)[:, self.k - 1 : self.k]
            squared = np.where(squared <= bound, squared, np.inf)
        order = np.argsort(squared, axis=1, kind="stable")[:, : self.k]
        self.squared_NK = np.take_along_axis(squared, order, 1)
        self.indices_NK = np.take_along_axis(indices, order, 1)

    @property
    def distances_NK(self) -> np.ndarray:
        return np.sqrt(self.squared_NK)


def memorisation_ratio(distances_NK: np.ndarray) -> np.ndarray:
    """Returns the distance to the nearest training image over the mean distance to the K nearest: 0..1, [N].

    The nearest one is included in the mean. 1 means as close to one training image as to the others nearby, 0 a copy
    (also if all K are copies). It is a ratio because flat images are close to many.

    Source: Carlini et al. 2023, Extracting Training Data from Diffusion Models, section 5.1 with n = 50. They
    take the mean over the neighbours of the training image that was found; here it is over those of the sample.
    """
    mean_N = distances_NK.mean(1)
    return np.divide(distances_NK[:, 0], mean_N, out=np.zeros(len(mean_N)), where=mean_N > 0)


@dataclass(frozen=True)
class MemorisationScores:
    """Statistics of the ratios of n images.

    median, lowest: of the ratios; half_share: share of ratios below 1/2 (Carlini et al. 2023, alpha = 0.5);
    third_share: share of images whose nearest training image is less than a third as far as the second nearest (Yoon et
    al. 2023); both 0..1. neighbours: K.
    """

    n: int
    neighbours: int
    median: float
    lowest: float
    half_share: float
    third_share: float


def memorisation_scores(distances_NK: np.ndarray) -> MemorisationScores:
    """Returns the scores of N images from their distances to the K >= 2 nearest training images, ascending.

    Source: see `memorisation_ratio`; Yoon et al. 2023, Diffusion Probabilistic Models Generalize when They Fail to
    Memorize.
    """
    ratio_N = memorisation_ratio(distances_NK)
    return MemorisationScores(
        n=len(ratio_N),
        neighbours=distances_NK.shape[1],
        median=float(np.median(ratio_N)),
        lowest=float(ratio_N.min()),
        half_share=float((ratio_N < 0.5).mean()),
        third_share=float((distances_NK[:, 0] < distances_NK[:, 1] / 3).mean()),
    )


def pixels(images: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, H, W, C] as vectors [n, H W C] in 0..255, whose squared distances are exact in float64."""
    return images.reshape(len(images), -1)
