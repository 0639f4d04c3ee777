"""Writes data sets to disk: the whole folder appears, or none.

TFDS writes into a folder with a temporary name and renames it when it is complete. So a killed run leaves nothing that
could be taken for a data set, and the next one removes what it left. Of two runs at once, one prepares and one waits.
"""

import fcntl
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dit_jax.errors import UserError
from dit_jax.system.files import expanded

HALF_MADE = "**/*incomplete*"  # TFDS's folders for data sets that are not complete

logger = logging.getLogger(__name__)


def check_data_dir(data_dir: str | Path) -> Path:
    """Returns `data_dir` with `~` expanded. Raises UserError if it, or a folder above it, is a file."""
    path = expanded(data_dir)
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"data_dir must be a folder, but {folder} is a file: remove it or use another data_dir")
    return path


def is_prepared(directory: Path) -> bool:
    """Returns whether `directory` (NAME/VERSION) holds a whole data set; TFDS renames it so only when complete.

    Raises UserError if the folder exists without a data set in it.
    """
    exists = directory.exists()  # first, as another process may be about to rename it
    whole = (directory / "dataset_info.json").is_file()
    if exists and not whole:
        raise UserError(
            f"{directory} does not hold a complete data set (no dataset_info.json): restore that file, or delete the "
            "folder and try again"
        )
    return whole


def once(directory: Path, home: Path, make: Callable[[], None]) -> Path:
    """Calls `make` unless `directory`, somewhere in `home`, holds a whole data set; returns `directory`.

    Of several processes one does; the others wait. What killed ones left in `home` is removed.

    Raises:
      UserError: see `is_prepared` and `only_one`.
    """
    if not is_prepared(directory):
        with only_one(home, HALF_MADE):
            if not is_prepared(directory):  # another process may have made it meanwhile
                make()
    return directory


def write(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the data set of `builder` (its `file_format` must be array_record) unless it exists.

    Raises UserError if the folder cannot be written. What the builder raises passes through, and then nothing of the
    data set is left behind.
    """
    directory = Path(builder.data_dir)
    try:
        with redirect_stdout(io.StringIO()):  # TFDS prints there, about unknown sizes
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "writ" not in str(error):  # array_record's message for a full disk
            raise
        if not is_prepared(directory):  # else another run was faster, and only the rename onto its folder failed
            raise UserError(f"cannot write the data set to {directory} ({error}): use another data_dir") from error


@contextmanager
def only_one(parent: Path, half_made: str) -> Iterator[None]:
    """Locks `parent` against other processes that prepare data there, and removes what killed ones left.

    `half_made` is the glob of such leftovers. A folder that cannot be locked is used without a lock, with a warning and
    without removing anything.

    Raises:
      UserError: nothing can be written there.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        file = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {parent} ({error.strerror}): use another data_dir") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process that is preparing data in %s", parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start a second run before this one trains", parent, error)
            yield
            return
        for left in list(parent.glob(half_made)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(file)  # this also releases the lock


def png(image_HWC: np.ndarray) -> bytes:
    """Encodes a uint8 image as PNG, losslessly. TFDS would use TensorFlow for it, which may not be installed."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
