"""What every data set shares on its way to the disk: one whole folder, or none.

TFDS writes into a folder with a temporary name and renames it when everything is in it, so a killed run leaves nothing
that is taken for a data set, and of two runs that prepare the same one at once, the slower finds the folder of the
faster and takes that.
"""

import fcntl
import io
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dit_jax.errors import UserError
from dit_jax.system.files import expanded

logger = logging.getLogger(__name__)


def check_data_dir(data_dir: str | Path) -> Path:
    """`data_dir` with `~` expanded. Raises UserError if it, or a folder above it, is a file."""
    path = expanded(data_dir)
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"data_dir must be a folder, but {folder} is a file: remove it or name another data_dir")
    return path


def is_prepared(directory: Path) -> bool:
    """Whether a whole data set lies in `directory` (NAME/VERSION); TFDS names it so only when everything is written."""
    return (directory / "dataset_info.json").is_file()


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the data set of `builder` (its `file_format` must be array_record) unless it is there.

    Raises UserError if the folder is there without a data set in it or cannot be written; what the builder raises
    passes through, and then nothing is left behind.
    """
    directory = Path(builder.data_dir)
    if directory.exists() and not is_prepared(directory):
        raise UserError(f"{directory} holds no whole data set (no dataset_info.json): delete that folder and try again")
    try:
        with no_empty_parent(directory), redirect_stdout(io.StringIO()):  # TFDS chats there, of unknown sizes
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "writ" not in str(error):  # array_record's words of a full disk
            raise
        if not is_prepared(directory):  # else another run was faster, and the rename onto its folder failed
            raise UserError(f"cannot write the data set to {directory} ({error}): name another data_dir") from error


@contextmanager
def only_one(parent: Path, half_made: str) -> Iterator[None]:
    """Waits until no other process prepares anything in `parent`, and removes what killed ones left there, by a glob.

    Raises:
      UserError: nothing can be written there.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        file = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {parent} ({error.strerror}): name another data.data_dir") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares data in %s", parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second run before this one trains", parent, error)
            yield
            return
        for left in parent.glob(half_made):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(file)  # which unlocks it


@contextmanager
def no_empty_parent(directory: Path) -> Iterator[None]:
    """Removes the folder of the data set's name again if nothing came to be in it."""
    try:
        yield
    finally:
        parent = directory.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def png(image_HWC: np.ndarray) -> bytes:
    """A uint8 image as PNG, lossless. TFDS would encode an array with TensorFlow, which may not be there."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
