"""Checkpoints: Orbax, asynchronous and atomic, in `<workdir>/checkpoints/<step>/`.

Each holds the train state, the config, the newest metrics, and the SHA-256 of all their files, which are written before
the checkpoint gets its name: with a name it is whole. One that is no longer what was written is named and passed over;
the newest whole one is used. Nothing is ever unpickled.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from dit_jax.errors import GONE, UserError, errno_of, is_the_machines
from dit_jax.system import together
from dit_jax.training import checksums
from dit_jax.training.state import TrainState

logger = logging.getLogger(__name__)
REREADS = 3
TIMEOUT = 7 * 24 * 3600  # seconds; Orbax reads the clock of the wall, and a jump of it must not end a save


@dataclass(frozen=True)
class NewestAndBest:
    """Which checkpoints Orbax keeps: the `keep` newest, and that of the step `best(steps)`, which chooses of all."""

    keep: int
    best: Callable[[Collection[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> Sequence[bool]:
        """One answer for each of the checkpoints, which come oldest first."""
        best, newest = self.best({each.step for each in checkpoints}), checkpoints[-self.keep :]
        return [checkpoint in newest or checkpoint.step == best for checkpoint in checkpoints]


def place_of(folder: Path) -> tuple[int, int] | None:
    """What a folder is, whatever it is called: None where there is none. Raises OSError of a file server, say."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


class Checkpointer:
    """Saves and restores train states of one workdir; a context manager that waits for the last save."""

    def __init__(
        self,
        workdir: Path,
        keep: int,
        read_only: bool = False,
        best: Callable[[Collection[int]], int | None] = lambda steps: None,
    ):
        """`keep` newest checkpoints stay, and that of the step `best(steps)`. `read_only` makes and cleans nothing."""
        self.folder, self._read_only, self._newest = workdir.absolute() / "checkpoints", read_only, -1
        self._failed = False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(keep, best),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            # Directories made in the background are waited for by the same clock, with a limit that cannot be set.
            async_options=ocp.AsyncOptions(
                timeout_secs=TIMEOUT,
                post_finalization_callback=self._sign,
                create_directories_asynchronously=False,
                barrier_sync_fn=self._meet,
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._place = place_of(self.folder.parent)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        with self._writing():
            self._manager.close()

    def save(self, state: TrainState, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Starts writing `state` under its own step and returns; a step that is there already is left alone.

        Waits for the save before. What goes wrong in the background is raised by the next `save`, `check` or exit.

        Raises:
          UserError: the disk is full, or the like, or the workdir was moved away.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._present()
        with self._writing():
            self._manager.wait_until_finished()
        self._newest = step
        # Orbax reads an item of the name `metrics` of every checkpoint when it starts, and dies of a damaged one.
        items = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(dict(config))}
        with self._writing():
            saved = self._manager.save(step, args=ocp.args.Composite(**items, scalars=ocp.args.JsonSave(dict(metrics))))
        if not saved:  # Orbax has reasons, and tells none
            newest = self._manager.latest_step()
            raise UserError(f"checkpoint {self.folder / str(step)} is refused beside {newest}; move what is newer away")

    def check(self) -> None:
        """Raises what went wrong in the background, without waiting for what is still under way; or `self._present`."""
        self._present()
        if self._failed or not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()

    def _sign(self) -> None:
        """Writes the sums of a checkpoint that is complete but for its name.

        Orbax calls it in the background, in the first process alone, when all have written.
        """
        (unnamed,) = self.folder.glob(f"{self._newest}.orbax-checkpoint-tmp*")
        checksums.write(Path(unnamed))

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Waits for Orbax's background threads of the other processes, but not after a failure: that is to be told.

        Raises:
          BaseException: what this thread has failed with.
        """
        error = sys.exception()
        if error is not None and together.several():
            self._failed = True
            raise error
        together.meet(key, timeout_ms)

    def _present(self) -> None:
        """Raises UserError if the workdir is no longer where it was: a save would make half of another one there."""
        with contextlib.suppress(OSError):  # what keeps a folder from being looked at says nothing of it
            if place_of(self.folder.parent) != self._place:
                raise UserError(f"{self.folder.parent} {GONE}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the operating system refuses into one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = errno_of(error)
            if code is None:
                raise
            self._present()
            raise UserError(
                f"checkpoint {self.folder / str(self._newest)} cannot be written ({os.strerror(code)}): mend that, and "
                "the same command goes on; the checkpoints before it are whole"
            ) from error

    def restore(self, like: TrainState, only: int | None = None) -> TrainState | None:
        """The newest checkpoint that is whole, or None where there is none at all; newer ones are set aside.

        With `only`, it is that step's or none. `like` has the shapes, dtypes and shardings to restore to
        (`jax.ShapeDtypeStruct` leaves), on any device count.

        Raises:
          UserError: checkpoints are there, and not one can be read, or the newest whole one is of another model.
        """
        for _ in range(REREADS):
            try:
                return self._restore(like, only)
            except UserError:  # a trainer beside this reader may have removed what was listed, for newer ones
                there = all((self.folder / str(step)).exists() for step in self._manager.all_steps())
                if not self._read_only or together.all_true(there):
                    raise
                self._manager.reload()
        return self._restore(like, only)

    def _restore(self, like: TrainState, only: int | None) -> TrainState | None:
        damaged: dict[int, str] = {}
        steps = [step for step in self._manager.all_steps() if only in (None, step)]
        for step in together.from_first(sorted(steps, reverse=True)):
            items, reason_here = None, ""
            try:
                items = self._read(step, like)
            except UserError:
                raise
            except Exception as error:  # Damaged; what Orbax raises of its own files: ValueError, KeyError, Exception
                if is_the_machines(error):
                    raise
                reason_here = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if together.all_true(items is not None):
                for at, reason in damaged.items():
                    logger.warning("checkpoint %s cannot be read and is passed over: %s", self.folder / str(at), reason)
                self._set_aside(damaged)
                return cast(Any, items)["state"]
            damaged[step] = reason_here or "another process cannot read it"
        if damaged:
            reasons = "; ".join(dict.fromkeys(damaged.values()))
            raise UserError(
                f"none of the checkpoints {list(damaged)} in {self.folder} can be read ({reasons}); restore one from a "
                "backup, or use another workdir to start over"
            )
        return None

    def _read(self, step: int, like: TrainState) -> Any:
        """The items of a checkpoint; of several processes, the first one checks its sums for all."""
        problem: Exception | None = None
        if together.is_first():
            try:
                checksums.check(self.folder / str(step))
            except Exception as error:
                problem = error
        if not together.all_true(problem is None):
            raise problem or checksums.Damaged("the first process found it damaged")
        check_model(self.folder / str(step), like)
        items = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        if int(cast(Any, items)["state"].step) != step:  # a folder that was copied or renamed
            raise checksums.Damaged(f"its state is that of step {int(cast(Any, items)['state'].step)}")
        return items

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames checkpoints to `<step>.damaged`: Orbax saves no step that is there, nor one before it."""
        if self._read_only:
            return
        for step in steps if together.is_first() else ():
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        together.sync()
        self._manager.reload()


def abstract(state: TrainState, shardings: Any) -> TrainState:
    """The shapes and dtypes of `state` with their shardings, one for each leaf or for a whole part of the tree.

    A target for `Checkpointer.restore`.
    """
    shardings = jax.tree.broadcast(shardings, state)
    as_target = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(as_target, state, shardings)


def check_model(folder: Path, like: TrainState) -> None:
    """Refuses a whole checkpoint whose parameters are not those of `like` in name and shape; reads none of them.

    Raises:
      UserError: the first parameter that differs.
    """
    saved: Any = ocp.StandardCheckpointHandler().metadata(folder / "state")  # pyright: ignore[reportArgumentType]
    there, here = (shapes(params) for params in (saved.tree["params"], like.params))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            found, wanted = (str(x[name]) if name in x else "none" for x in (there, here))
            raise UserError(
                f"checkpoint {folder} is of another model than the config ({name} is {found} there, {wanted} by the "
                "config); restore config.json, or use another workdir"
            )


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name, such as `block_0/mlp/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
