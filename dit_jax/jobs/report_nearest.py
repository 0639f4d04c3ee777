"""Finds the training images nearest to samples, by pixels and by features, in one pass over them, for a report."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dit_jax.companions.classifier import load_classifier
from dit_jax.data.datasets import Records
from dit_jax.data.images import Images
from dit_jax.errors import UserError
from dit_jax.evaluation.features import Extractor, inception_features
from dit_jax.evaluation.memorisation import NearestSearch, memorisation_ratio, memorisation_scores, pixels
from dit_jax.experiment import Experiment
from dit_jax.reporting.report_images import Memorisation, Neighbour, Suspect
from dit_jax.system.progress import Progress

COMPARED = 1_000  # samples compared, at most, and as many test images
VALUES = 1 << 24  # pixel values of these samples, at most: fewer large images are compared
SUSPECTS, NEAREST = 8, 3  # samples pictured, and neighbours beside each
SAMPLES, REAL = "samples", "real test images"

Embed = Callable[[np.ndarray], np.ndarray]


def features_at_hand(config: ConfigDict, workdir: Path, experiment: Experiment) -> Extractor | None:
    """Returns the run's classifier (the smaller network), else Inception if its weights are there, else None."""
    try:
        return load_classifier(workdir, config)[1]
    except UserError:
        pass
    try:
        return inception_features(config.evaluate.inception_path, experiment.mesh)
    except UserError:
        return None


def memorisation_of(
    experiment: Experiment, samples: Images, train: Records, test: Records | None, extractor: Extractor | None
) -> Memorisation:
    """Measures how close the first samples, and as many test images, are to training images; finds the closest samples.

    Without `test`, only samples are measured. If training mirrors its images, the mirror image of a sample counts too.

    Raises UserError if features are not finite, or there is only a single training image.
    """
    if train.count < 2:
        raise UserError("there is only one training image, so there is no second nearest to compare with")
    embeds: dict[str, Embed] = {"pixels": pixels}
    if extractor is not None:
        embeds[f"features ({extractor.name})"] = lambda batch: extractor.extract(batch)[0]
    images, flip = np.concatenate(list(samples.chunks())), experiment.config.data.flip
    count = max(1, min(COMPARED, len(images), VALUES // images[0].size))
    sets = {SAMPLES: images[:count]}
    if test is not None:
        sets[REAL] = np.concatenate([chunk.images for chunk in test.first(count).chunks()])
    searches = search(embeds, sets, train, flip)
    return Memorisation(
        scores={
            distance: {name: asdict(memorisation_scores(found.distances_NK)) for name, found in by_set.items()}
            for distance, by_set in searches.items()
        },
        suspects=suspects_of(searches, images, samples.labels, train, experiment.info.class_names),
        flipped=flip,
        reference_n=train.count,
    )


def search(
    embeds: dict[str, Embed], sets: dict[str, np.ndarray], train: Records, flip: bool
) -> dict[str, dict[str, NearestSearch]]:
    """Returns embedding -> set -> its completed search; the training images are read once, in chunks."""
    views = lambda queries: (queries, queries[:, :, ::-1]) if flip else (queries,)  # noqa: E731
    searches = {
        distance: {name: NearestSearch([embed(view) for view in views(queries)]) for name, queries in sets.items()}
        for distance, embed in embeds.items()
    }
    with Progress(train.count, "training image") as progress:
        for chunk in train.chunks():
            for distance, embed in embeds.items():
                vectors = embed(chunk.images)
                for found in searches[distance].values():
                    found.update(vectors)
            progress.update(next(iter(searches["pixels"].values())).seen)
    return searches


def suspects_of(
    searches: dict[str, dict[str, NearestSearch]],
    images: np.ndarray,
    labels: np.ndarray | None,
    train: Records,
    class_names: tuple[str, ...],
) -> list[Suspect]:
    """Returns the samples with the lowest ratios by pixels, lowest first, with their neighbours by each distance."""
    ratio_N = memorisation_ratio(searches["pixels"][SAMPLES].distances_NK)

    def nearest(distance: str, i: int) -> list[Neighbour]:
        found = searches[distance][SAMPLES]
        # A pixel distance is shown as the root mean square difference of the values.
        scale = images[0].size ** -0.5 if distance == "pixels" else 1.0
        near = train.read(found.indices_NK[i, :NEAREST])
        distances = found.distances_NK[i, :NEAREST] * scale
        return [
            Neighbour(image, class_names[label], float(d)) for image, label, d in zip(*near, distances, strict=True)
        ]

    return [
        Suspect(
            index=int(i),
            image=images[i],
            label="" if labels is None else class_names[labels[i]],
            ratio=float(ratio_N[i]),
            nearest={distance: nearest(distance, i) for distance in searches},
        )
        for i in np.argsort(ratio_N, kind="stable")[:SUSPECTS]
    ]
