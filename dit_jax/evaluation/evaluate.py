"""Computes figures from two sets of images: sums up each set once, in memory that hardly grows, and compares them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dit_jax.evaluation import distances
from dit_jax.evaluation.distances import Moments
from dit_jax.evaluation.features import Extract
from dit_jax.evaluation.neighbours import neighbour_scores

logger = logging.getLogger(__name__)
LEAST_IMAGES = 10  # one for each split of the Inception Score
FEW_TO_SCORE = 1_000  # images below which the Inception Score says little: it is at most the images in a split
KEPT = 10_000  # feature vectors that are kept per set, for metrics that need them one by one
# feature network -> its name for each metric, so that figures of different networks never share a name
NAMES = {
    "inception": {"frechet": "fid", "by_class": "fid_by_class"},
    "classifier": {"frechet": "fd_classifier", "by_class": "fd_classifier_by_class"},
}


@dataclass(frozen=True)
class Reference:
    """What the metrics need of the images that others are compared with.

    moments: of all features; features_ND: float32, of all images or of `KEPT` drawn by a fixed seed; labels_N: the
    labels of the latter, if known.
    """

    moments: Moments
    features_ND: np.ndarray
    labels_N: np.ndarray | None

    @property
    def count(self) -> int:
        return self.moments.count


@dataclass(frozen=True)
class Summary(Reference):
    """What the metrics need of the images that are judged.

    logits_NK: float32, of all images; all_labels_N: the labels of all images, if known.
    """

    logits_NK: np.ndarray
    all_labels_N: np.ndarray | None


def in_proportion(class_counts: np.ndarray, n: int) -> np.ndarray:
    """Returns labels int32 [n] in the proportions of a data set's classes; all classes in turn if these are equal.

    A distance between sets of other proportions would measure those too. The j-th image of a class comes at
    (j + 1/2) / its share (Sainte-Lague's method), so the labels of fewer images are the first of those of more.
    """
    shares = class_counts / class_counts.sum()
    most = np.ceil(shares * (n + len(shares) / 2) + 1)  # at place n + K/2 each class is at most 1/2 behind: n have come
    labels = np.repeat(np.arange(len(shares), dtype=np.int32), most.astype(int) * (shares > 0))
    first = np.searchsorted(labels, np.arange(len(shares)))
    place = (np.arange(len(labels)) - first[labels] + 0.5) / shares[labels]
    return labels[np.argsort(place, kind="stable")][:n]


def summarize(extract: Extract, chunks: Iterable[np.ndarray], count: int, labels: np.ndarray | None) -> Summary:
    """Sums up `count` images, which arrive in chunks uint8 [any, H, W, C], with labels int [count] or None.

    Besides the moments and the kept features, it holds 4 K bytes per image, its logits.
    """
    is_kept = np.zeros(count, bool)
    is_kept[np.random.default_rng(0).permutation(count)[:KEPT]] = True
    moments, kept, all_logits, first = None, [], [], 0
    for images in chunks:
        features, logits = extract(images)
        moments = (moments or Moments.empty(features.shape[1])).update(features)
        kept.append(features[is_kept[first : first + len(images)]])
        all_logits.append(logits)
        first += len(images)
    assert moments is not None
    assert first == count
    kept_labels = None if labels is None else labels[is_kept]
    return Summary(moments, np.concatenate(kept), kept_labels, np.concatenate(all_logits), labels)


def accuracy(summary: Summary) -> float:
    """Returns the share of images whose likeliest class is their label, 0..1."""
    return float(np.mean(summary.logits_NK.argmax(1) == summary.all_labels_N))


def scores(feature: str, reference: Reference, samples: Summary, class_names: Sequence[str]) -> dict[str, object]:
    """Returns every figure that compares `samples` with `reference`, under names with the feature network; see NAMES.

    Figures by class, and the classifier's accuracy, are included only if the samples have labels.

    Raises UserError for too few images.
    """
    name = "{}".format if feature == "inception" else f"{{}}_{feature}".format
    figures: dict[str, object] = {
        NAMES[feature]["frechet"]: distances.frechet_distance(reference.moments, samples.moments)
    }
    if feature == "inception":
        score = distances.inception_score(samples.logits_NK)
        figures |= {"inception_score": score.mean, "inception_score_std": score.std}
    elif samples.all_labels_N is not None:
        figures[name("accuracy")] = accuracy(samples)
    kid = distances.kid(reference.features_ND, samples.features_ND)
    figures |= {name("kid"): kid.mean, name("kid_standard_error"): kid.standard_error}
    neighbours = neighbour_scores(reference.features_ND, samples.features_ND)
    for metric in ("precision", "recall", "density", "coverage"):
        figures[name(metric)] = getattr(neighbours, metric)
    by_class = class_distances(reference, samples, class_names)
    return figures | ({NAMES[feature]["by_class"]: by_class} if by_class else {})


def class_distances(reference: Reference, samples: Summary, class_names: Sequence[str]) -> dict[str, float] | None:
    """Returns Frechet distances of kept images by class name; None without labels, or if a class has fewer than two."""
    if samples.labels_N is None or reference.labels_N is None:
        return None
    drawn, real = (np.bincount(labels, minlength=len(class_names)) for labels in (samples.labels_N, reference.labels_N))
    if np.minimum(drawn, real)[real > 0].min() < 2:
        logger.warning("a class has fewer than 2 images, so there are no distances by class")
        return None
    found = distances.class_frechet_distances(
        reference.features_ND, reference.labels_N, samples.features_ND, samples.labels_N
    )
    return {class_names[label]: distance for label, distance in found.items()}
