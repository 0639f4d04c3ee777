"""The mode train_classifier, and the trained classifier of a workdir: an experiment with another network and loss."""

import json
import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dit_jax import config as configs
from dit_jax import jobs
from dit_jax.checks import require
from dit_jax.data import datasets
from dit_jax.errors import UserError
from dit_jax.evaluation.evaluate import accuracy, summarize
from dit_jax.evaluation.features import Extractor, classifier_features
from dit_jax.experiment import Experiment, read_resolved
from dit_jax.files import replacing
from dit_jax.models.classifier import Classifier, ClassifierOutput
from dit_jax.together import is_first
from dit_jax.training import classifier as training
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import Params
from dit_jax.training.step import CallResult, Recipe, make_train_call
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir

logger = logging.getLogger(__name__)
WARMUP_STEPS = 100
# Of the config, these alone make a classifier another one.
OWN_KEYS = ("seed", "data.name", "data.flip", "diffusion.", "train.ema_", "classifier.width", "classifier.depth",
            "classifier.crop_padding", "classifier.batch_size", "classifier.learning_rate",
            "classifier.weight_decay")  # fmt: skip


class ClassifierExperiment(Experiment):
    """The classifier of a config that `classifier_config` made: all that `jobs.run_training` asks of an experiment."""

    section: ClassVar[str] = "classifier"

    @cached_property
    def model(self) -> Classifier:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The network, without parameters."""
        c = self.config.classifier
        return Classifier(num_classes=len(self.info.class_names), width=c.width, depth=c.depth)

    def apply(self, params: Params, x_t: jax.Array, t_B: jax.Array) -> ClassifierOutput:  # pyright: ignore
        """Features and logits."""
        return self.model.apply(params, x_t, t_B)  # pyright: ignore[reportReturnType]

    def init_params(self) -> Params:
        """Fresh parameters, float32."""
        return self.model.init(self.keys[0], jnp.zeros((1, *self.info.image_shape)), jnp.zeros((1,), jnp.int32))

    def train_call(self, streamed: bool = False) -> Callable[..., CallResult]:
        """As an experiment's, with the classifier's loss."""
        recipe: Recipe = self.recipe
        loss = partial(training.batch_loss, crop_padding=self.config.classifier.crop_padding)
        return make_train_call(self.apply, self.optimizer, recipe, self.mesh, self.keys[1], loss, streamed)


def classifier_config(config: ConfigDict) -> ConfigDict:
    """The config of a run as that of its classifier's: `classifier.*` in the places where training looks."""
    config, c = config.copy_and_resolve_references(), config.classifier
    config.train.update(steps=c.steps, batch_size=c.batch_size, sample_every=0, microbatches=1, shard_params=False)
    config.optimizer.update(learning_rate=c.learning_rate, weight_decay=c.weight_decay)
    config.optimizer.update(schedule="cosine", warmup_steps=min(WARMUP_STEPS, c.steps // 10), clip_norm=1.0)
    config.optimizer.update(b1=0.9, b2=0.999)
    return config


def train_classifier(config: ConfigDict, workdir: Path, out: Path | None) -> int:
    """Trains the classifier in WORKDIR/classifier, or goes on; ends with its accuracy on the clean test images.

    Returns the exit code, as `jobs.train`.

    Raises:
      UserError: as `jobs.train`; the workdir holds a run of another config.
    """
    require(out is None, "--out", out, "the classifier goes to WORKDIR/classifier; leave --out away")
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    experiment = ClassifierExperiment(classifier_config(config))
    free = tuple(key for key, _ in configs.leaves(config) if not key.startswith(OWN_KEYS))
    code = jobs.run_training(experiment, workdir / "classifier", free)
    if not code:
        report_accuracy(experiment, workdir)
    return code


def report_accuracy(experiment: ClassifierExperiment, workdir: Path) -> None:
    """Prints the accuracy on the test split and keeps it in WORKDIR/classifier/accuracy.json."""
    config = experiment.config
    step, extractor = load_classifier(workdir, config)
    test = datasets.load(config.data.name, config.data.data_dir, "test")
    summary = summarize(extractor.extract, [test.images], len(test.images), test.labels)
    result = {"accuracy": accuracy(summary), "n": summary.count, "data": config.data.name, "split": "test"}
    result |= {"step": step, "features_sha256": extractor.sha256}
    if is_first():
        with replacing(workdir / "classifier" / "accuracy.json") as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    logger.info("classifier: %.2f%% of %d clean test images are right", 100 * result["accuracy"], summary.count)


def load_classifier(workdir: Path, config: ConfigDict) -> tuple[int, Extractor]:
    """(step, features) of the newest checkpoint in WORKDIR/classifier, its averaged weights; `config` is the run's.

    Raises:
      UserError: there is none, or it is of other data.
    """
    folder = workdir / "classifier"
    missing = UserError(
        f"--workdir={workdir} has no trained classifier; first run python main.py --mode=train_classifier "
        f"--workdir {workdir} (and --config FILE, if nothing else was trained there)"
    )
    if not configs.path_of(folder).is_file() or not (folder / "checkpoints").is_dir():
        raise missing
    experiment = ClassifierExperiment(read_resolved(folder))
    name = experiment.config.data.name
    require(name == config.data.name, "data.name", config.data.name, f"{folder} knows {name}; train another")
    with Checkpointer(folder, keep=1, read_only=True) as checkpointer:
        state = checkpointer.restore(experiment.abstract_state())
    if state is None:
        raise missing
    return int(state.step), classifier_features(experiment.apply, state.ema_params, experiment.mesh)
