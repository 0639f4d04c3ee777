"""What the evaluations during and after training share: the feature network and the settings of sampling."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dit_jax.companions.classifier import load_classifier
from dit_jax.evaluation.evaluate import LEAST_IMAGES
from dit_jax.evaluation.features import Extractor, inception_features
from dit_jax.experiment import Experiment

# The keys of `sample.*` that the images of an evaluation do not depend on.
NOT_SETTINGS = ("n", "labels", "batch_size", "checkpoint", "task", "images", "mask", "strength", "denoising")


def load_features(config: ConfigDict, workdir: Path, experiment: Experiment) -> Extractor:
    """Loads the network that `evaluate.features` names. Raises UserError if its weights are missing."""
    if config.evaluate.features == "inception":
        return inception_features(config.evaluate.inception_path, experiment.mesh)
    return load_classifier(workdir, config)[1]


def floor_warning(real: int, samples: int) -> str | None:
    """Returns a warning if fewer real images than samples are judged, as their figures are then no floor; else None."""
    if real >= samples or real < LEAST_IMAGES:  # so few images get no figures
        return None
    return (
        f"the real figures come from {real} test images, those of the samples from {samples}: with fewer images, "
        "distances are larger and coverage is smaller, so they are no floor; use more test images, or fewer samples"
    )


def sampling_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns every key of `sample.*` that the images depend on."""
    return {name: value for name, value in config.sample.items() if name not in NOT_SETTINGS}
