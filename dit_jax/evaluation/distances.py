"""Distances between two sets of features, and the Inception Score, as pure functions in float64.

Float32 features are widened a block of rows at a time, so 50,000 x 2048 of them need no second copy.
N counts images, D is the width of a feature vector, K counts classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dit_jax.errors import UserError

BLOCK = 1_000  # rows widened to float64 at a time: 16 MB at D = 2048


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Returns slices of length `size` that cover 0..n-1; the last one may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def widened(features_ND: np.ndarray) -> np.ndarray:
    """Returns features as float64. Raises UserError if a value is not finite: one NaN would make every distance NaN."""
    wide = np.asarray(features_ND, np.float64)
    if not np.isfinite(wide).all():
        raise UserError("a feature vector holds NaN or infinity: look for NaN in the images or the network's weights")
    return wide


@dataclass(frozen=True)
class Moments:
    """What a Gaussian fit needs of N feature vectors, in memory that does not grow with N.

    count: N; mean_D: their mean; scatter_DD: the sum of (x - mean)(x - mean)^T. The arrays are float64. Parts computed
    on other devices or hosts, or before a restart, can be merged in any order.
    """

    count: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @classmethod
    def empty(cls, D: int) -> "Moments":
        """Returns the moments of no vectors."""
        return cls(0, np.zeros(D), np.zeros((D, D)))

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Moments":
        """Returns the moments of all rows, computed block by block."""
        moments = cls.empty(features_ND.shape[1])
        for rows in blocks(len(features_ND)):
            block_ND = widened(features_ND[rows])
            mean_D = block_ND.mean(0)
            centred_ND = block_ND - mean_D
            moments = moments.merge(cls(len(block_ND), mean_D, centred_ND.T @ centred_ND))
        return moments

    def update(self, features_ND: np.ndarray) -> "Moments":
        """Returns the moments with more rows added. Each call costs D^2 besides, so add some hundred rows at a time."""
        return self.merge(Moments.of(features_ND))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets together.

        Source: Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance, eq. 2.1.
        """
        count = self.count + other.count
        if count == 0:
            return self
        step_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + step_D * (other.count / count)
        scatter_DD = np.outer(step_D, step_D)
        scatter_DD *= self.count * other.count / count
        scatter_DD += self.scatter_DD
        scatter_DD += other.scatter_DD
        return Moments(count, mean_D, scatter_DD)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The covariance, over N - 1 as in the published FID code. Raises UserError for fewer than two vectors."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}: evaluate more")
        return self.scatter_DD / (self.count - 1)


def root(covariance_DD: np.ndarray) -> np.ndarray:
    """Returns A [D, rank] with A A^T = the covariance; variances that are mere rounding errors get no column."""
    variances, directions = np.linalg.eigh(covariance_DD)
    kept = variances > len(variances) * np.finfo(np.float64).eps * max(variances[-1], 0.0)
    return directions[:, kept] * np.sqrt(variances[kept])


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared Frechet (2-Wasserstein) distance of two Gaussians.

    It is |mean_a - mean_b|^2 + tr(A + B - 2 sqrt(A B)), and never negative. With A = F F^T and B = G G^T, tr sqrt(A B)
    is the sum of the singular values of F^T G. These are real, and equally exact for covariances of low rank, where
    square roots of zero eigenvalues would turn rounding errors into 1e-8 each.

    Raises UserError for fewer than two images in a set.
    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6 (FID, with Inception's features).
    """
    return _distance(a.mean_D - b.mean_D, root(a.covariance_DD), root(b.covariance_DD))


def _distance(step_D: np.ndarray, root_a: np.ndarray, root_b: np.ndarray) -> float:
    """Returns the Frechet distance for covariances that are given by roots [D, any]."""
    common = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum() if root_a.size and root_b.size else 0.0
    return max(0.0, float(step_D @ step_D + np.square(root_a).sum() + np.square(root_b).sum() - 2 * common))


def expected_bias(reference: Moments, count: int, seed: int = 0) -> float:
    """Returns about the Frechet distance from `reference` of `count` images that are as good as the reference's own.

    It is simulated once, with `count` draws from the reference's Gaussian against that Gaussian. As a distance adds up
    D x D variances, one simulation is a good average. It takes count x D float64 of memory.

    Raises UserError for fewer than two images.
    """
    if count < 2:
        raise UserError(f"a covariance needs at least 2 images, got {count}: evaluate more")
    std_D = np.sqrt(np.linalg.eigvalsh(reference.covariance_DD).clip(0))
    draws_ND = np.random.default_rng(seed).normal(size=(count, len(std_D))) * std_D
    mean_D = draws_ND.mean(0)
    return _distance(mean_D, (draws_ND - mean_D).T / np.sqrt(count - 1), np.diag(std_D))


def bias_warning(a: Moments, b: Moments) -> str | None:
    """Returns one line on how biased the distance is if a covariance cannot have full rank, else None.

    The bias is simulated from the larger set. If that is too small itself, it lacks some of the variances, and the bias
    is larger than stated, hence "at least".

    Raises UserError for fewer than two images in a set.
    """
    fewer, more = sorted((a, b), key=lambda moments: moments.count)
    D = len(a.mean_D)
    if fewer.count > D:
        return None
    return (
        f"{fewer.count} images against {more.count} are too few for {D} features: even two sets of the same kind would "
        f"be at least about {expected_bias(more, fewer.count):.3g} apart; compare only with figures from "
        f"the same counts, or evaluate more than {D}"
    )


def class_frechet_distances(
    reference_ND: np.ndarray, reference_labels_N: np.ndarray, samples_ND: np.ndarray, sample_labels_N: np.ndarray
) -> dict[int, float]:
    """Returns the Frechet distance between the images of each label, for every label of the reference.

    Raises UserError if a label has fewer than two images in either set.
    """
    distances = {}
    for label in np.unique(reference_labels_N).tolist():
        parts = reference_ND[reference_labels_N == label], samples_ND[sample_labels_N == label]
        if min(map(len, parts)) < 2:
            raise UserError(
                f"label {label} has {len(parts[0])} reference images and {len(parts[1])} samples, "
                f"but a distance by class needs 2 of each: draw more, and of every class"
            )
        (mean_a, root_a), (mean_b, root_b) = map(_mean_and_root, parts)
        distances[label] = _distance(mean_a - mean_b, root_a, root_b)
    return distances


def _mean_and_root(features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [D] of the rows and a root [D, any] of their covariance; few rows are themselves a root."""
    count, D = features_ND.shape
    if count > D:
        moments = Moments.of(features_ND)
        return moments.mean_D, root(moments.covariance_DD)
    rows_ND = widened(features_ND)
    mean_D = rows_ND.mean(0)
    return mean_D, (rows_ND - mean_D).T / np.sqrt(count - 1)


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits (divided by their number); the latter is None for a single split."""

    mean: float
    std: float | None


def inception_score(logits_NK: np.ndarray, splits: int = 10, seed: int = 0) -> InceptionScore:
    """Returns exp(mean KL(p(class | image) || p(class))) of each split, in 1..K, averaged over the splits.

    `logits_NK` are logits or log-probabilities; minus infinity means probability 0. The images are first shuffled by
    `seed`, because splits of samples in the order of their labels would each see few classes.

    Raises UserError for fewer images than splits, and for NaN.
    Source: Salimans et al. 2016, section 4; their code takes ten splits.
    """
    count = len(logits_NK)
    if not 1 <= splits <= count:
        raise UserError(f"{splits} splits of {count} images for the Inception Score: use 1..{count} splits")
    order = np.random.default_rng(seed).permutation(count)
    scores = [_score(logits_NK[rows]) for rows in np.array_split(order, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)) if splits > 1 else None)


def _score(logits_NK: np.ndarray) -> float:
    """Returns the Inception Score of one split."""
    logits = np.asarray(logits_NK, np.float64)
    highest = logits.max(1, keepdims=True)
    if not np.isfinite(highest).all():
        raise UserError("a row of logits holds NaN or plus infinity, or only minus infinity: no class is most likely")
    log_p = logits - highest
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(0, keepdims=True)  # may underflow to 0 although some p is not 0
    log_mean = np.log(mean, where=mean > 0, out=np.zeros_like(mean))
    terms = np.multiply(p, log_p - log_mean, where=(p > 0) & (mean > 0), out=np.zeros_like(p))
    return float(np.exp(terms.sum(1).mean()))


class Kid(NamedTuple):
    """Mean over the subsets and its standard error; the latter is None for a single subset."""

    mean: float
    standard_error: float | None


def kid(a_ND: np.ndarray, b_ND: np.ndarray, subset_size: int = 1_000, subsets: int = 100, seed: int = 0) -> Kid:
    """Returns KID, the unbiased estimate of MMD^2 with the kernel (x . y / D + 1)^3, which may be below 0.

    It is averaged over pairs of disjoint subsets: as many as both sets hold, at most `subsets`. Fewer images than
    `subset_size` make one subset. Disjoint subsets are independent, so the standard error is a true one.

    Raises UserError for fewer than two images in a set.
    Source: Binkowski et al. 2018, eq. 4 and section 4; their code draws 100 overlapping subsets of 1,000.
    """
    count = min(len(a_ND), len(b_ND))
    size = min(subset_size, count)
    if size < 2:
        raise UserError(f"KID needs at least 2 images in each set and subset, got {size}: evaluate more")
    number = min(subsets, count // size)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(set_ND))[: number * size].reshape(number, size) for set_ND in (a_ND, b_ND)]
    values = [mmd2(a_ND[i], b_ND[j]) for i, j in zip(*orders, strict=True)]
    error = float(np.std(values, ddof=1) / np.sqrt(number)) if number > 1 else None
    return Kid(float(np.mean(values)), error)


def mmd2(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Returns the unbiased estimate of the squared maximum mean discrepancy with the cubic kernel of KID.

    Source: Gretton et al. 2012, eq. 3.
    """
    a, b = widened(a_ND), widened(b_ND)
    return _mean_of_pairs(a) + _mean_of_pairs(b) - 2 * float(_kernel(a, b).mean())


def _kernel(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    return (a_ND @ b_ND.T / a_ND.shape[1] + 1) ** 3


def _mean_of_pairs(a_ND: np.ndarray) -> float:
    """Returns the mean of the kernel over pairs of different rows."""
    kernel_NN = _kernel(a_ND, a_ND)
    n = len(a_ND)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (n * (n - 1)))
