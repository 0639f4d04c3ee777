"""The mode train_classifier: trains a workdir's classifier and measures its accuracy."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from dit_jax.companions.base import free_keys
from dit_jax.companions.classifier import ClassifierExperiment, classifier_config, load_classifier
from dit_jax.data import datasets
from dit_jax.data.images import Images
from dit_jax.evaluation.evaluate import accuracy, summarize
from dit_jax.jobs.train import run_training
from dit_jax.settings.checks import require
from dit_jax.system.files import write_json
from dit_jax.system.together import is_first
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir

logger = logging.getLogger(__name__)
OWN_KEYS = ("diffusion.", "classifier.width", "classifier.depth", "classifier.crop_padding", "classifier.batch_size",
            "classifier.learning_rate", "classifier.weight_decay")  # fmt: skip


def train_classifier(config: ConfigDict, workdir: Path, out: Path | None) -> int:
    """Trains the classifier in WORKDIR/classifier, or resumes; at the end, measures its accuracy on clean test images.

    Returns the exit code, like `train`.

    Raises:
      UserError: as in `train`; or the workdir holds a run of another config.
    """
    require(out is None, "--out", out, "the classifier goes to WORKDIR/classifier; omit --out")
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    experiment = ClassifierExperiment(classifier_config(config))
    if len(experiment.info.class_names) == 1:
        fix = "evaluate with --config.evaluate.features=inception"
        logger.warning("warning: with one class, a classifier learns nothing and its features are useless: %s", fix)
    folder = workdir / experiment.section
    code = run_training(experiment, folder, free_keys(config, OWN_KEYS), f"move {folder} elsewhere to train another")
    if not code:
        report_accuracy(experiment, workdir)
    return code


def report_accuracy(experiment: ClassifierExperiment, workdir: Path) -> None:
    """Logs the accuracy on the test split, if there is one, and writes it to WORKDIR/classifier/accuracy.json."""
    config = experiment.config
    step, extractor = load_classifier(workdir, config)
    try:
        test = Images.stored(datasets.open_split(experiment.source, "test"))
    except datasets.NoSplitError as error:
        logger.warning("the classifier is trained, but its quality cannot be measured: %s", error)
        return
    summary = summarize(extractor.extract, test.chunks(), test.count, test.labels)
    result = {"accuracy": accuracy(summary), "n": summary.count, "data": config.data.name, "split": "test"}
    result |= {"step": step, "features_sha256": extractor.sha256}
    if is_first():
        write_json(workdir / "classifier" / "accuracy.json", result)
    logger.info(
        "classifier: %.2f%% of %d clean test images are classified correctly", 100 * result["accuracy"], summary.count
    )
