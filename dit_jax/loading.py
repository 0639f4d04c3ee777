"""Reading a run back: the config of a workdir, and its weights with their sampler (`dit_jax.load`)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dit_jax import config as configs
from dit_jax import evaluations
from dit_jax.diffusion import tasks
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment, Sample, make_sample
from dit_jax.files import expanded
from dit_jax.resolving import resolve
from dit_jax.training import sharding
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import Params


@dataclass(frozen=True)
class Run:
    """A trained run: `run.sample(run.ema_params, jax.random.key(0), [3, 3, 5])` draws three images.

    `weights` are those that `sample.weights` names: `ema_params`, or the raw ones.
    """

    experiment: Experiment
    step: int
    ema_params: Params
    sample: Sample
    weights: Params

    def task(self, draw: tasks.Draw, timesteps: np.ndarray | None = None) -> Sample:
        """The config's sampler for another task, over all of its timesteps or those given."""
        plan = self.experiment.plan(self.experiment.timesteps() if timesteps is None else timesteps)
        return make_sample(self.experiment, plan, draw)


def read_resolved(workdir: Path) -> ConfigDict:
    """The config of a workdir, resolved.

    Raises:
      UserError: there is none, or it is of another version.
    """
    try:
        return resolve(configs.read(workdir))
    except (AttributeError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{configs.path_of(workdir)} is not of this version of dit-jax ({reason}); mend it") from None


def load(workdir: str | Path, config: ConfigDict | None = None) -> Run:
    """The checkpoint of a workdir that `sample.checkpoint` names, and its sampler; `config` replaces the workdir's own.

    Raises:
      UserError: no workdir, no such checkpoint in it, or none that can be read.
    """
    workdir = expanded(workdir)
    experiment = Experiment(config or read_resolved(workdir))
    missing = UserError(
        f"--workdir={workdir}: no checkpoint in it yet; train first with --config FILE --workdir {workdir}"
    )
    if not (workdir / "checkpoints").is_dir():
        raise missing
    with Checkpointer(workdir, keep=experiment.config.train.keep_checkpoints, read_only=True) as checkpointer:
        state = checkpointer.restore(
            experiment.abstract_state(), evaluations.wanted_step(workdir, experiment.config.sample.checkpoint)
        )
    if state is None:
        raise missing
    replicate = partial(jax.device_put, device=sharding.replicated(experiment.mesh))
    ema_params = replicate(state.ema_params)
    weights = replicate(state.params) if experiment.config.sample.weights == "raw" else ema_params
    return Run(experiment, int(state.step), ema_params, experiment.sampler(), weights)
