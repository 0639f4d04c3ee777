"""Stores the feature sums of training images, which evaluations compare with, for later evaluations and runs."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dit_jax.data.datasets import Records
from dit_jax.data.preparation import check_data_dir
from dit_jax.errors import UserError
from dit_jax.evaluation.distances import Moments
from dit_jax.evaluation.evaluate import KEPT, Reference
from dit_jax.evaluation.features import Extractor
from dit_jax.system.files import write_npz
from dit_jax.system.together import all_true, first_before_others, is_first

logger = logging.getLogger(__name__)
VERSION = 1  # of how images become features, and features sums; files of other versions are not used


def reference_of(
    config: ConfigDict, extractor: Extractor, train: Records, sum_up: Callable[[], Reference]
) -> Reference:
    """Returns `sum_up()` of the training split, or the stored result from the same network and the same images.

    It is stored in DATA_DIR/references, for every run on these data: 116 MB for Inception's features, about 5 MB for a
    classifier's.
    """
    path = place(config, extractor, train)
    known = read(path, train.count)
    if all_true(known is not None):
        assert known is not None
        return known
    found = sum_up()
    with first_before_others():
        # If all processes share the folder, the others find the first one's file there.
        if known is None and (is_first() or read(path, train.count) is None):
            keep(path, found)
    return found


def place(config: ConfigDict, extractor: Extractor, train: Records) -> Path:
    """Returns the path of the file, whose name has a hash of everything that the sums depend on."""
    of = [VERSION, extractor.name, extractor.sha256, train.origin, KEPT, train.probe()]
    name = f"{config.data.name}-{extractor.name}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}.npz"
    return check_data_dir(config.data.data_dir) / "references" / name


def keep(path: Path, reference: Reference) -> None:
    """Writes the file; if that fails, only logs a warning."""
    moments = reference.moments
    arrays = {"mean": moments.mean_D, "scatter": moments.scatter_DD, "features": reference.features_ND}
    try:
        write_npz(path, arrays | {"count": moments.count, "labels": np.asarray(reference.labels_N)})
    except (OSError, UserError) as error:
        logger.warning(
            "%s cannot be written (%s): the next evaluation processes the training images again", path, error
        )


def read(path: Path, count: int) -> Reference | None:
    """Returns the stored sums of `count` labelled images; None if there are none, or the file cannot be used."""
    try:
        with np.load(path, allow_pickle=False) as file:  # each array is checked by the archive's CRC
            mean_D, scatter_DD, features_ND, labels_N = (
                file[name] for name in ("mean", "scatter", "features", "labels")
            )
            found = int(file["count"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged header can raise any error of Python's tokenizer
        logger.warning("%s cannot be read (%s): the training images are processed again", path, error)
        return None
    kept = min(count, KEPT)
    if found != count or features_ND.shape != (kept, len(mean_D)) or labels_N.shape != (kept,):
        logger.warning("%s was made from other images: the training images are processed again", path)
        return None
    return Reference(Moments(found, mean_D, scatter_DD), features_ND, labels_N)
