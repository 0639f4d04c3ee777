"""Checkpoints: Orbax, asynchronous and atomic, in `<workdir>/checkpoints/<step>/`.

Each holds the train state, the config, the newest metrics, and the SHA-256 of all their files. The checksums are
written before the checkpoint gets its final name, so a checkpoint with that name is complete. One that was damaged
afterwards is logged and skipped, and the newest intact one is used. Nothing is ever unpickled.
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
TIMEOUT = 7 * 24 * 3600  # seconds; Orbax uses the wall clock, and a jump of that clock must not end a save


@dataclass(frozen=True)
class NewestAndBest:
    """Makes Orbax keep the `keep` newest checkpoints, and that of the step `best(steps)`, chosen among all steps."""

    keep: int
    best: Callable[[Collection[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> Sequence[bool]:
        """Returns whether to keep each checkpoint; `checkpoints` come oldest first."""
        best, newest = self.best({each.step for each in checkpoints}), checkpoints[-self.keep :]
        return [checkpoint in newest or checkpoint.step == best for checkpoint in checkpoints]


def place_of(folder: Path) -> tuple[int, int] | None:
    """Returns (device, inode), which survive a renaming, or None if there is no folder. Raises any other OSError."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def errors_alone() -> Iterator[None]:
    """Hides Orbax's warnings, which say of a read-only manager that it is one, as requested."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        absl.setLevel(before)


class Checkpointer:
    """Saves and restores the train states of one workdir; a context manager whose exit waits for the last save."""

    def __init__(
        self,
        workdir: Path,
        keep: int,
        read_only: bool = False,
        best: Callable[[Collection[int]], int | None] = lambda steps: None,
    ):
        """Keeps the `keep` newest checkpoints and that of `best(steps)`. `read_only` creates and cleans up nothing."""
        self.folder, self._read_only, self._newest = workdir.absolute() / "checkpoints", read_only, -1
        self._failed = False
        with errors_alone() if read_only else contextlib.nullcontext():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=NewestAndBest(keep, best),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                # For directories made in the background, the same clock would apply, with a limit that cannot be set.
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
        """Starts writing `state` under its own step and returns; does nothing if that step has a checkpoint.

        Waits for the previous save first. An error in the background is raised by the next `save`, `check` or exit.

        Raises:
          UserError: the disk is full or cannot be written, the workdir was moved away, or Orbax refuses the step.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._present()
        with self._writing():
            self._manager.wait_until_finished()
        self._newest = step
        # When it starts, Orbax reads the item named `metrics` of every checkpoint, and fails if one is damaged.
        items = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(dict(config))}
        with self._writing():
            saved = self._manager.save(step, args=ocp.args.Composite(**items, scalars=ocp.args.JsonSave(dict(metrics))))
        if not saved:  # Orbax does not say why
            newest = self._manager.latest_step()
            raise UserError(
                f"checkpoint {self.folder / str(step)} is refused because {newest} exists; move newer ones elsewhere"
            )

    def check(self) -> None:
        """Raises a background save's error, or UserError if the workdir is gone; does not wait for a running save."""
        self._present()
        if self._failed or not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()

    def _sign(self) -> None:
        """Writes the checksums of a checkpoint that is complete except for its final name.

        Orbax calls this in the background, only in the first process, once all processes have written.
        """
        (unnamed,) = self.folder.glob(f"{self._newest}.orbax-checkpoint-tmp*")
        checksums.write(Path(unnamed))

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Makes Orbax's background thread wait for those of the other processes; after a failure it must not wait.

        Raises:
          BaseException: the error that this thread failed with.
        """
        error = sys.exception()
        if error is not None and together.several():
            self._failed = True
            raise error
        together.meet(key, timeout_ms)

    def _present(self) -> None:
        """Raises UserError if the workdir is no longer where it was: a save would create part of another one there."""
        with contextlib.suppress(OSError):  # a folder that cannot be examined need not have moved
            if place_of(self.folder.parent) != self._place:
                raise UserError(f"{self.folder.parent} {GONE}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an error of the operating system into a UserError of one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = errno_of(error)
            if code is None:
                raise
            self._present()
            raise UserError(
                f"checkpoint {self.folder / str(self._newest)} cannot be written ({os.strerror(code)}): fix that, and "
                "the same command resumes the run; earlier checkpoints are intact"
            ) from error

    def restore(self, like: TrainState, only: int | None = None) -> TrainState | None:
        """Returns the newest intact checkpoint, or None if there are none; sets damaged newer ones aside.

        With `only`, considers that step alone. With `read_only`, sets nothing aside. `like` has the shapes, dtypes and
        shardings to restore to (`jax.ShapeDtypeStruct` leaves), for any number of devices.

        Raises:
          UserError: there are checkpoints but none can be read, or the newest intact one is of another model.
        """
        for _ in range(REREADS):
            try:
                return self._restore(like, only)
            except UserError:  # a trainer running at the same time may have removed listed ones for newer ones
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
            except Exception as error:  # damaged; on its own files, Orbax raises ValueError, KeyError or Exception
                if is_the_machines(error):
                    raise
                reason_here = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if together.all_true(items is not None):
                for at, reason in damaged.items():
                    logger.warning("checkpoint %s cannot be read and is skipped: %s", self.folder / str(at), reason)
                self._set_aside(damaged)
                return cast(Any, items)["state"]
            damaged[step] = reason_here or "another process cannot read it"
        if damaged:
            reasons = "; ".join(dict.fromkeys(damaged.values()))
            if only is not None:
                fix = "use sample.checkpoint=newest or another step"
                raise UserError(f"checkpoint {self.folder / str(only)} cannot be read ({reasons}); {fix}")
            raise UserError(
                f"none of the checkpoints {list(damaged)} in {self.folder} can be read ({reasons}); restore one from a "
                f"backup, or move {self.folder.parent} elsewhere and train it again"
            )
        return None

    def _read(self, step: int, like: TrainState) -> Any:
        """Returns the state item of a checkpoint; the first process verifies the checksums for all processes."""
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
            raise checksums.Damaged(f"it holds the state of step {int(cast(Any, items)['state'].step)}")
        return items

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames checkpoints to `<step>.damaged`: Orbax saves neither a step that exists nor one before it."""
        if self._read_only:
            return
        for step in steps if together.is_first() else ():
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        together.sync()
        self._manager.reload()


def abstract(state: TrainState, shardings: Any) -> TrainState:
    """Returns the shapes and dtypes of `state` with their shardings, as a target for `Checkpointer.restore`.

    `shardings` has one sharding for each leaf or for a whole subtree.
    """
    shardings = jax.tree.broadcast(shardings, state)
    as_target = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(as_target, state, shardings)


def check_model(folder: Path, like: TrainState) -> None:
    """Refuses an intact checkpoint whose parameters differ from those of `like` in name or shape; reads no parameter.

    Raises:
      UserError: names the first parameter that differs.
    """
    saved: Any = ocp.StandardCheckpointHandler().metadata(folder / "state")  # pyright: ignore[reportArgumentType]
    there, here = (shapes(params) for params in (saved.tree["params"], like.params))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            found, wanted = (str(x[name]) if name in x else "none" for x in (there, here))
            raise UserError(
                f"checkpoint {folder} does not match the config's model ({name} is {found} there, {wanted} in the "
                "config); restore config.json, or use another workdir"
            )


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its name, such as `params/block_0/mlp/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
