"""Checkpoints: Orbax, asynchronous and atomic, in `<workdir>/checkpoints/<step>/`.

Each holds the train state, the config and the newest metrics. A checkpoint that cannot be read is named and passed
over; the newest whole one is used. Nothing is ever unpickled.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dit_jax.errors import UserError
from dit_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores train states of one workdir; a context manager that waits for the last save."""

    def __init__(self, workdir: Path, keep: int, read_only: bool = False):
        """`keep` newest checkpoints stay. `read_only` neither creates nor cleans anything."""
        self.folder, self._read_only = workdir.absolute() / "checkpoints", read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Starts writing `state` under its own step and returns; a step that is there already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax reads an item of the name `metrics` of every checkpoint when it starts, and dies of a damaged one.
        items = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(dict(config))}
        self._manager.save(step, args=ocp.args.Composite(**items, scalars=ocp.args.JsonSave(dict(metrics))))

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, or None where there is none at all; newer ones are set aside.

        `like` has the shapes, dtypes and shardings to restore to (`jax.ShapeDtypeStruct` leaves), on any device count.

        Raises:
          UserError: checkpoints are there, and not one of them can be read.
        """
        damaged, reason = [], ""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                items = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
            except PermissionError:
                raise
            except Exception as error:  # by the kind of damage: ValueError, KeyError, JSONDecodeError, Exception
                damaged.append(step)
                reason = str(error).strip().split("\n")[0][:200]
                logger.warning("checkpoint %s cannot be read and is passed over: %s", self.folder / str(step), reason)
            else:
                self._set_aside(damaged)
                return items["state"]
        if damaged:
            raise UserError(
                f"none of the checkpoints {damaged} in {self.folder} can be read ({reason}); restore one from a "
                "backup, or use another workdir to start over"
            )
        return None

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames checkpoints to `<step>.damaged`: Orbax saves no step that is there, nor one before it."""
        if self._read_only:
            return
        for step in steps:
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        self._manager.reload()


def abstract(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
    """The shapes and dtypes of `state` with one sharding for all: a target for `Checkpointer.restore`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
