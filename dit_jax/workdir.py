"""Checks whether a job may use the folder of a run, and creates it."""

import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from dit_jax.errors import UserError
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.system.jsonl import read_rows

ANOTHER = "use another workdir"
SECTIONS = ("data", "model", "diffusion", "optimizer", "train", "sample")  # if all are there, config.json is ours
SAMPLE_FREE_KEYS = (*configs.FREE_KEYS, "model.dtype")  # the same weights in other arithmetic


def check_workdir(
    workdir: Path, config: ConfigDict, free: tuple[str, ...] = configs.FREE_KEYS, fix: str = ANOTHER
) -> None:
    """Refuses a workdir that is a file or holds a run with another config, except for `free` keys; writes nothing.

    A run that ended before it had anything to lose may be started again with any config. `fix` tells the user what to
    do about a run that has something to lose.
    """
    require(not workdir.exists() or workdir.is_dir(), "--workdir", workdir, "it is a file; use a folder")
    checkpoints = workdir / "checkpoints"
    file = f"{checkpoints} is a file; move it elsewhere, or use another workdir"
    require(not checkpoints.exists() or checkpoints.is_dir(), "--workdir", workdir, file)
    for folder in (checkpoints, *checkpoints.glob("[0-9]*")):
        link = f"{folder} is a link to a missing folder; mount or create that folder"
        require(folder.exists() or not folder.is_symlink(), "--workdir", workdir, link)
    if configs.path_of(workdir).exists():
        old, path = configs.read(workdir), configs.path_of(workdir)
        foreign = f"{path} belongs to another program; move it elsewhere, or use another workdir"
        require(all(section in old for section in SECTIONS), "--workdir", workdir, foreign)
        changed = configs.differences(old, config, free)
        if changed and has_begun(workdir):
            listed = "; ".join(changed)
            raise UserError(f"--workdir={workdir} holds a run with another config ({listed}); {fix}")
        if has_begun(workdir):
            configs.check_keys(old, config, str(path))
    elif any(checkpoints.glob("[0-9]*")):
        raise UserError(f"--workdir={workdir} has checkpoints but no config.json; restore it, or use another workdir")


def has_begun(workdir: Path) -> bool:
    """Whether a run has something that another config would lose: a checkpoint, complete or not, or metrics."""
    return any((workdir / "checkpoints").glob("[0-9]*")) or any(read_rows(workdir / "metrics.jsonl"))


def begun(workdir: Path) -> ConfigDict | None:
    """Returns the config of the run that has begun in a workdir; None if there is no such run."""
    return configs.read(workdir) if configs.path_of(workdir).exists() and has_begun(workdir) else None


def check_nothing_lost(workdir: Path) -> None:
    """Refuses to begin at step 0 if metrics.jsonl has steps by which a checkpoint must have been saved."""
    config = begun(workdir)
    if config is None:
        return
    reached = max((int(row["step"]) for row in read_rows(workdir / "metrics.jsonl")), default=0)
    if reached > 2 * config.train.checkpoint_every:  # the first save is complete before the second begins
        raise UserError(
            f"--workdir={workdir}: metrics.jsonl reaches step {reached}, but there is no checkpoint; restore "
            f"{workdir / 'checkpoints'}, or use another workdir to start over"
        )


def check_savable(workdir: Path) -> None:
    """Refuses a workdir whose path keeps checkpoints or events from being written or read back.

    Orbax takes the path for a glob pattern, TensorStore a backslash for a slash, and TensorBoard expects UTF-8.
    """
    whole = str(workdir.absolute())
    for part in ("[", "**", "\\"):
        fix = f"checkpoints cannot be stored below {whole} because of the {part} in it; use another folder"
        require(part not in whole, "--workdir", workdir, fix)
    shown = whole.encode(errors="replace").decode()
    require(shown == whole, "--workdir", shown, "its path is not UTF-8; use another folder")


def make_folder(folder: Path, flag: str) -> None:
    """Creates a folder and its parents, and tries to write a temporary file in it; `flag` names it in the error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{flag}={folder} cannot be written to ({error.strerror}); use a folder that you can write to"
        ) from None
