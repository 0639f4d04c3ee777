"""Fills in what a config leaves unset, and checks every value, before anything is built from it."""

from pathlib import Path

from ml_collections import ConfigDict

from dit_jax.data import datasets, folders, image_folder
from dit_jax.errors import UserError
from dit_jax.models.dit import PRESETS
from dit_jax.settings import checks, configs


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which unset values are filled in and every value has been checked.

    The preset gives the model's sizes, the data set its image size, and a folder of pictures its class names. A run's
    config keeps those names, so that it does not need the folder later.

    Raises:
      UserError: a name is unknown or a combination impossible; the message has key, value and fix.
    """
    try:
        config = config.copy_and_resolve_references()
    except (ArithmeticError, TypeError, ValueError) as error:  # in values that are computed from others
        raise UserError(f"the config's references cannot be resolved ({error}); fix the values they refer to") from None
    checks.choice("model.preset", config.model.preset, PRESETS)
    with config.unlocked():
        for key, value in PRESETS[config.model.preset].items():
            if config.model[key] is None:
                config.model[key] = value
        if config.data.name == image_folder.NAME:
            checks.check_folder(config.data)
            config.data.class_names = config.data.class_names or "/".join(folders.class_names(config.data.root))
        info = datasets.info(config.data.name, folder_of(config.data))
        if config.data.image_size is None:
            config.data.image_size = info.image_shape[0]
    checks.check(config, info)
    return config


def read_resolved(workdir: Path) -> ConfigDict:
    """Returns the resolved config of a workdir.

    Raises:
      UserError: there is none, or it is from another version.
    """
    try:
        return resolve(configs.read(workdir))
    except (AttributeError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{configs.path_of(workdir)} does not fit this version of dit-jax ({reason}); fix it") from None


def folder_of(c: ConfigDict) -> image_folder.Folder | None:
    """Returns the folder of pictures that the section `data` names; None for other data sets."""
    if c.name != image_folder.NAME:
        return None
    return image_folder.Folder(c.root, c.image_size, tuple(c.class_names.split("/")), c.skip_broken, c.content)
