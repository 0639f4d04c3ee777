"""What the classifier and the autoencoder of a workdir have in common: their config, and how they are restored."""

from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.settings.resolving import read_resolved
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import TrainState

Kind = TypeVar("Kind", bound=Experiment)
WARMUP_STEPS = 100  # for Adam, whose first estimates come from few gradients; a tenth of a short training
# Changing one of these config keys makes such a network another one; its own section has more of them.
OWN_KEYS = ("seed", "data.name", "data.image_size", "data.class_names", "data.flip", "train.ema_")


def companion_config(config: ConfigDict, section: str, weight_decay: float) -> ConfigDict:
    """Returns a run's config as that of a section's network, with its values in the places where training looks."""
    config, c = config.copy_and_resolve_references(), config[section]
    config.train.update(steps=c.steps, batch_size=c.batch_size, sample_every=0, microbatches=1, shard_params=False)
    config.train.init_from = ""
    config.evaluate.every_steps = 0
    config.optimizer.update(learning_rate=c.learning_rate, weight_decay=weight_decay)
    config.optimizer.update(schedule="cosine", warmup_steps=min(WARMUP_STEPS, c.steps // 10), clip_norm=1.0)
    config.optimizer.update(b1=0.9, b2=0.999)
    config.model.latents = False  # it sees images, whatever the run diffuses
    return config


def free_keys(config: ConfigDict, own: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the keys that a resumed training may change: all but those that start with `OWN_KEYS` or `own`."""
    return tuple(key for key, _ in configs.leaves(config) if not key.startswith((*OWN_KEYS, *own)))


def restore(kind: type[Kind], workdir: Path, config: ConfigDict) -> tuple[Kind, TrainState]:
    """Returns (experiment, state) of the newest checkpoint in the folder where `kind` trains; `config` is the run's.

    Raises:
      UserError: there is none, or it is of other data.
    """
    section = kind.section
    folder, mode = workdir / section, f"--mode=train_{section}"
    missing = UserError(
        f"--workdir={workdir} has no trained {section}; first run python main.py {mode} --workdir {workdir} "
        "(and --config FILE, if nothing else was trained there)"
    )
    if not any((folder / "checkpoints").glob("[0-9]*")):
        raise missing
    experiment = kind(read_resolved(folder))
    known, asked = experiment.info, Experiment(config).info
    fix = f"move it elsewhere, and train another with {mode}"
    require(known.name == asked.name, "data.name", asked.name, f"{folder} was trained on {known.name}; {fix}")
    other = f"{folder} was trained with other classes or another image size; {fix}"
    require(known == asked, "data.name", asked.name, other)
    with Checkpointer(folder, keep=1, read_only=True) as checkpointer:
        state = checkpointer.restore(experiment.abstract_state())
    if state is None:
        raise missing
    return experiment, state
