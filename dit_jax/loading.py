"""Loads a run from its workdir: the config, and the weights with their sampler (`dit_jax.load`)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dit_jax import evaluations
from dit_jax.companions.autoencoder import with_codec
from dit_jax.companions.classifier import load_guide
from dit_jax.diffusion import tasks
from dit_jax.diffusion.guidance import Logits
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment, Sample, make_sample
from dit_jax.settings import configs
from dit_jax.settings.resolving import read_resolved, resolve
from dit_jax.system.files import expanded
from dit_jax.training import sharding
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import Params
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir


@dataclass(frozen=True)
class Run:
    """A trained run: `run.sample(run.ema_params, jax.random.key(0), [3, 3, 5])` draws three images.

    `weights` are the ones that `sample.weights` names: `ema_params` or the raw ones. `classifier` guides the sampler if
    `sample.classifier_scale` is above 0, and is None otherwise; `classifier_sha256` is the hash of its weights.
    """

    experiment: Experiment = field(repr=False)
    step: int
    ema_params: Params = field(repr=False)
    sample: Sample = field(repr=False)
    weights: Params = field(repr=False)
    classifier: Logits | None = field(default=None, repr=False)
    classifier_sha256: str | None = None

    def task(self, draw: tasks.Draw, timesteps: np.ndarray | None = None) -> Sample:
        """Returns the config's sampler for another task, over `timesteps` or, by default, all of the config's."""
        return make_sample(self.experiment, self.experiment.plan(timesteps), draw, self.classifier)


def load(workdir: str | Path, config: ConfigDict | None = None, overrides: Sequence[str] = ()) -> Run:
    """Loads the checkpoint that `sample.checkpoint` names, and its sampler; `config` replaces the workdir's own.

    `overrides` are as on the command line: `["sample.sampler=dpmpp_2m", "sample.steps=20"]`.

    Raises:
      UserError: the workdir or the checkpoint is missing, no checkpoint can be read, or an override is wrong or changes
        a key that the weights depend on.
    """
    workdir = expanded(workdir)
    if isinstance(overrides, str | Mapping):
        raise UserError(f'overrides={overrides!r}: give a list, such as ["sample.sampler=dpmpp_2m", "sample.steps=20"]')
    config = config or read_resolved(workdir)
    if None in dict(configs.leaves(config)).values():  # not resolved, as a config file gives it
        config = resolve(config)
    if overrides:
        config = copy.deepcopy(config)
        configs.override(config, overrides)
        config = resolve(config)
        check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    experiment = with_codec(workdir, config)
    missing = UserError(
        f"--workdir={workdir}: no checkpoint in it yet; train first with --config FILE --workdir {workdir}"
    )
    if not (workdir / "checkpoints").is_dir():
        raise missing
    replicate = partial(jax.device_put, device=sharding.replicated(experiment.mesh))  # before other uses of devices
    keep = experiment.config.train.keep_checkpoints
    with Checkpointer(workdir, keep, read_only=True) as checkpointer:
        state = checkpointer.restore(
            experiment.abstract_state(), evaluations.wanted_step(workdir, experiment.config.sample.checkpoint)
        )
    if state is None:
        raise missing
    ema_params = replicate(state.ema_params)
    weights = replicate(state.params) if experiment.config.sample.weights == "raw" else ema_params
    guided = experiment.config.sample.classifier_scale > 0
    classifier, sha256 = load_guide(workdir, experiment.config) if guided else (None, None)
    sample = make_sample(experiment, experiment.plan(), classifier=classifier)
    return Run(experiment, int(state.step), ema_params, sample, weights, classifier, sha256)
