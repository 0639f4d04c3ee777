"""The classifier of a workdir: an experiment with another network and loss, and the features of a trained one."""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit_jax.companions.base import companion_config, restore
from dit_jax.diffusion.guidance import Logits
from dit_jax.evaluation.features import Extractor, classifier_features, weights_hash
from dit_jax.experiment import Experiment
from dit_jax.models.classifier import Classifier, ClassifierOutput
from dit_jax.settings.checks import require
from dit_jax.system.together import whole
from dit_jax.training.classifier import batch_loss
from dit_jax.training.state import Params, TrainState
from dit_jax.training.step import Loss

logger = logging.getLogger(__name__)


class ClassifierExperiment(Experiment):
    """The classifier of a config from `classifier_config`, with all that `run_training` asks of an experiment."""

    section: ClassVar[str] = "classifier"

    @cached_property
    def model(self) -> Classifier:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The network, without parameters."""
        c = self.config.classifier
        return Classifier(num_classes=len(self.info.class_names), width=c.width, depth=c.depth)

    def apply(self, params: Params, x_t: jax.Array, t_B: jax.Array) -> ClassifierOutput:  # pyright: ignore
        """Returns features and logits."""
        return self.model.apply(params, x_t, t_B)  # pyright: ignore[reportReturnType]

    def init_params(self) -> Params:
        """Returns fresh parameters, float32."""
        return self.model.init(self.keys[0], jnp.zeros((1, *self.info.image_shape)), jnp.zeros((1,), jnp.int32))

    def loss(self, apply: Callable[..., Any]) -> Loss:
        """Returns the classifier's loss."""
        c = self.config
        return partial(batch_loss, apply, self.schedule, c.data.flip, c.classifier.crop_padding)


def classifier_config(config: ConfigDict) -> ConfigDict:
    """Returns a run's config as that of its classifier, with `classifier.*` in the places where training looks."""
    return companion_config(config, ClassifierExperiment.section, config.classifier.weight_decay)


def load_classifier(workdir: Path, config: ConfigDict) -> tuple[int, Extractor]:
    """Returns the step and the feature extractor of `trained_classifier`."""
    experiment, state = trained_classifier(workdir, config)
    return int(state.step), classifier_features(experiment.apply, state.ema_params, experiment.mesh)


def load_guide(workdir: Path, config: ConfigDict) -> tuple[Logits, str]:
    """Returns the logits of `trained_classifier`, to guide the run's samples, and the SHA-256 of its weights.

    Raises:
      UserError: as `trained_classifier`, or it was trained with another noise schedule.
    """
    experiment, state = trained_classifier(workdir, config)
    alike = all(map(np.array_equal, experiment.schedule, Experiment(config).schedule))
    noise = f"{workdir / 'classifier'} was trained with other noise (diffusion.*); train another, or use 0"
    require(alike, "sample.classifier_scale", config.sample.classifier_scale, noise)
    params = jax.tree.map(whole, state.ema_params)
    return lambda x_t, t_B: experiment.apply(params, x_t, t_B).logits, weights_hash(state.ema_params)


def trained_classifier(workdir: Path, config: ConfigDict) -> tuple[ClassifierExperiment, TrainState]:
    """Returns (experiment, state) of the newest checkpoint in WORKDIR/classifier; warns if its training is unfinished.

    Raises:
      UserError: there is none, or it is of other data.
    """
    experiment, state = restore(ClassifierExperiment, workdir, config)
    step, steps = int(state.step), experiment.config.classifier.steps
    if step < steps:
        again = "finish it with --mode=train_classifier; until then, its figures mean little"
        logger.warning("%s has done %d of its %d steps: %s", workdir / "classifier", step, steps, again)
    return experiment, state
