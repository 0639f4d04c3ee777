"""The small evaluation that training makes every `evaluate.every_steps`: a row of figures, and the best checkpoint.

It only reads the state, so the run is the same with it and without. `evaluations.jsonl` says which steps have one, so a
run that was ended in the middle of an evaluation makes it when it is resumed.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dit_jax import evaluations
from dit_jax.data import datasets
from dit_jax.data.images import Images
from dit_jax.data.pipeline import steps_per_epoch
from dit_jax.evaluation.distances import bias_warning
from dit_jax.evaluation.evaluate import LEAST_IMAGES, Reference, Summary, in_proportion, scores, summarize
from dit_jax.evaluation.features import Extractor
from dit_jax.experiment import Experiment, Sample
from dit_jax.jobs.judging import floor_warning, load_features, sampling_settings
from dit_jax.jobs.references import reference_of
from dit_jax.reporting.images import count_diverged, to_uint8
from dit_jax.reporting.writer import MetricWriter
from dit_jax.settings.checks import require
from dit_jax.system.stop import Stop
from dit_jax.system.together import from_first, is_first, whole
from dit_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class PutOffError(Exception):
    """The run was asked to end while an evaluation was under way."""


@dataclasses.dataclass(frozen=True)
class TrainingEvaluation:
    """Evaluates the EMA weights of a state. The data that it needs is loaded at the first evaluation and kept."""

    experiment: Experiment
    workdir: Path
    extractor: Extractor
    writer: MetricWriter
    stop: Stop

    def __call__(self, step: int, state: TrainState) -> None:
        """Makes the evaluation of `step` unless there is one; if the run is asked to end, logs that it is put off."""
        if not owed(self.experiment.config, self.workdir, step):
            return
        start = time.perf_counter()
        try:
            figures, about = self.figures(step, state)
        except PutOffError:
            logger.info("the evaluation at step %d is postponed: the same command does it first", step)
            return
        self.writer.write_scalars(step, {name: value for name, value in figures.items() if isinstance(value, float)})
        if is_first():
            evaluations.append(self.workdir, figures | about | {"seconds": round(time.perf_counter() - start, 3)})

    def figures(self, step: int, state: TrainState) -> tuple[dict[str, object], dict[str, Any]]:
        """Returns the figures of `step`, and everything that they depend on."""
        config, name = self.experiment.config, self.extractor.name
        reference, real = self.real_sets
        samples = self.sum_up(Images(self.count, self.labels, lambda: self.drawn(state)))
        names, t = self.experiment.info.class_names, config.train
        seen = {"images": step * t.batch_size, "epoch": step / steps_per_epoch(reference.count, t.batch_size)}
        settings = sampling_settings(config) | {"weights": "ema", "sampler": config.evaluate.training_sampler}
        settings["classifier_scale"] = 0.0  # no classifier guides these samples
        about = {"during": evaluations.TRAINING, "step": step} | seen | settings | {"steps": self.steps}
        about |= {"n": samples.count, "features": name, "features_sha256": self.extractor.sha256}
        about["warning"] = bias_warning(reference.moments, samples.moments)
        about |= {"data": config.data.name, "reference_split": "train", "reference_n": reference.count}
        few = first_features(reference, samples.count)
        floor = scores(name, few, real, names) if real.count >= LEAST_IMAGES else {}
        floor |= {"split": "test", "n": real.count, "warning": floor_warning(real.count, samples.count)}
        return scores(name, few, samples, names), about | {"floor": floor}

    @property
    def count(self) -> int:
        return self.experiment.config.evaluate.training_n

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each image, in the proportions of the training images."""
        train = Images.stored(datasets.open_split(self.experiment.source, "train"))
        counts = np.bincount(np.asarray(train.labels), minlength=len(self.experiment.info.class_names))
        return in_proportion(counts, self.count)

    @property
    def steps(self) -> int:
        """The number of sampler steps."""
        c = self.experiment.config
        return min(c.evaluate.training_steps, c.diffusion.num_steps)

    @cached_property
    def sample(self) -> Sample:
        return self.experiment.sampler(self.experiment.config.evaluate.training_sampler, self.steps)

    @cached_property
    def real_sets(self) -> tuple[Reference, Summary]:
        """The sums of (the training split, as many test images as samples are drawn)."""
        train, test = (datasets.open_split(self.experiment.source, split) for split in ("train", "test"))
        make = lambda: self.sum_up(Images.stored(train))  # noqa: E731
        reference = reference_of(self.experiment.config, self.extractor, train, make)
        return reference, self.sum_up(Images.stored(test.first(self.count)))

    def sum_up(self, images: Images) -> Summary:
        """Runs `summarize`; raises PutOffError when the run is asked to end."""

        def chunks() -> Iterator[np.ndarray]:
            for chunk in images.chunks():
                self.leave_if_asked()
                yield chunk

        with self.stop.busy_with("a batch of the evaluation"):
            return summarize(self.extractor.extract, chunks(), images.count, images.labels)

    def drawn(self, state: TrainState) -> Iterator[np.ndarray]:
        """Yields `count` images, uint8, in batches, all drawn at one size, so that one compiled program serves all."""
        c, labels = self.experiment.config.sample, self.labels
        size = min(c.batch_size, self.count)
        for first in range(0, self.count, size):
            self.leave_if_asked()
            batch = np.resize(labels[first : first + size], size)
            images = whole(self.sample(state.ema_params, jax.random.key(c.seed), batch, first))[: self.count - first]
            lost = count_diverged(images)
            if lost:
                logger.warning("%d of the images %d..%d have diverged, and are judged as they are, black or white",
                               lost, first, first + len(images) - 1)  # fmt: skip
            yield to_uint8(images)

    def leave_if_asked(self) -> None:
        if self.stop.signalled():
            raise PutOffError


def owed(config: ConfigDict, workdir: Path, step: int) -> bool:
    """Whether `step` should have an evaluation and has none; with several processes, as the first one sees it."""
    every = config.evaluate.every_steps
    due = step > 0 and every > 0 and (step % every == 0 or step == config.train.steps)
    if not due:
        return False
    missing = all(row["step"] != step for row in evaluations.of_training(workdir))
    return bool(from_first([missing])[0])


def first_features(summary: Reference, count: int) -> Reference:
    """Returns a reference with only the first `count` feature vectors, as some scores' time grows with the product."""
    labels_N = None if summary.labels_N is None else summary.labels_N[:count]
    return dataclasses.replace(summary, features_ND=summary.features_ND[:count], labels_N=labels_N)


def check_sets(experiment: Experiment, train_count: int) -> None:
    """Raises UserError, before any training, if there are no test images or too few training images to compare with."""
    every = experiment.config.evaluate.every_steps
    if every:
        datasets.open_split(experiment.source, "test")
        fix = f"{train_count} training images are too few, at least {LEAST_IMAGES} are needed; use 0 (never)"
        require(train_count >= LEAST_IMAGES, "evaluate.every_steps", every, fix)


def prepare(experiment: Experiment, workdir: Path) -> Callable[[MetricWriter, Stop], TrainingEvaluation] | None:
    """Returns a function that makes the evaluation from a run's writer and stop; None if `evaluate.every_steps` is 0.

    Raises:
      UserError: the feature network that it needs is not there; raised before any training.
    """
    if not experiment.config.evaluate.every_steps:
        return None
    extractor = load_features(experiment.config, workdir, experiment)
    return lambda writer, stop: TrainingEvaluation(experiment, workdir, extractor, writer, stop)
