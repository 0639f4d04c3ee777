"""Loads, overrides, saves and compares configs, as files and command lines; experiment.py interprets the values.

A config is an `ml_collections.ConfigDict` that `get_config(arg)` in a Python file returns. An override is parsed as the
type of the value that it replaces, and a workdir keeps the resolved config as `config.json`.
"""

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict  # pyright: ignore[reportAttributeAccessIssue]
from ml_collections.config_dict import placeholder

from dit_jax.errors import UserError
from dit_jax.models.dit import PRESETS
from dit_jax.system.files import expanded, real, write_json

CONFIG_JSON = "config.json"
MAIN_FLAGS = ("config", "workdir", "mode", "out", "images", "coordinator", "num_processes", "process_id", "cluster")
# Prefixes of the keys that a resumed run may change: its length and pace, how a step is divided, where the data are,
# and what comes after training.
FREE_KEYS = ("train.steps", "train.log_every", "train.sample_every", "train.checkpoint_every", "train.keep_checkpoints",
             "train.steps_per_call", "train.max_seconds", "train.max_bad_steps",
             "train.microbatches", "train.shard_params", "model.remat",
             "data.data_dir", "data.resident", "data.root", "data.content", "data.skip_broken",
             "sample.", "autoencoder.", "classifier.", "evaluate.")  # fmt: skip


def load(spec: str) -> ConfigDict:
    """Returns the config that `get_config()` in a Python file makes; `spec` is FILE or FILE:ARG.

    Raises:
      UserError: there is no such file, it has no `get_config`, or that fails, does not know ARG or returns no config.
    """
    path, argument = split(spec)
    if not path.is_file():
        raise UserError(f"--config={spec}: there is no file {path}; configs/ has those that come with dit-jax")
    module_spec = importlib.util.spec_from_file_location("experiment_config", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={spec}: {path} is not a Python file; give a file with get_config(), or FILE:ARG")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={spec}: {path} defines no get_config(); see configs/default.py")
        config = module.get_config(*([argument] if argument else []))
        if isinstance(config, ConfigDict):
            dict(leaves(config))  # raises for a section within itself, a key that is no string, a missing value
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's, who must fix whatever it raises
        told = re.sub(r"Other fields present:.*?(?=Did you mean|$)", "", " ".join(str(error).split()))
        reason = told[:200]  # ml_collections lists all keys before the nearest one
        raise UserError(f"--config={spec} cannot be loaded ({type(error).__name__}: {reason}); fix {path}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={spec}: get_config() returned {config!r}, not a ConfigDict; see configs/default.py")
    return config.as_configdict() if isinstance(config, FrozenConfigDict) else config


def split(spec: str) -> tuple[Path, str]:
    """Returns (file, argument) of FILE or FILE:ARG. Either may contain a colon: the longest name of a file counts."""
    parts = spec.split(":")
    ends = (end for end in range(len(parts), 0, -1) if os.path.isfile(expanded(":".join(parts[:end]))))
    end = next(ends, 1)
    return expanded(":".join(parts[:end])), ":".join(parts[end:])


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf, in order."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield prefix + key, config[key]


def _parse(text: str, kind: type) -> Any:
    """Returns `text` as a value of `kind`: bool, int, float or str."""
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is int and not text.replace("_", "").lstrip("+-").isdigit():
        value = float(text)  # 1e6 is accepted as an int
        if value != int(value):
            raise ValueError(text)
        return int(value)
    return kind(text)


def override(config: ConfigDict, assignments: Sequence[str]) -> None:
    """Applies `a.b=value` assignments in place, each parsed as the type of the key that it replaces.

    `model.preset` is applied first and unsets the sizes that it gives, so that they do not mix with those of a recipe.

    Raises:
      UserError: a key is unknown (the message has the nearest one), or a value is missing or of the wrong type.
    """
    known = dict(leaves(config))
    for assignment in sorted(assignments, key=lambda assignment: not assignment.startswith("model.preset=")):
        key, equals, text = assignment.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise UserError(f"--config.{key}: there is no such key; did you mean --config.{near[0]}?")
        section, _, name = key.rpartition(".")
        holder = config[section] if section else config
        kind = holder.get_type(name)
        if not equals:
            raise UserError(f"--config.{key} has no value; write --config.{key}=VALUE ({kind.__name__})")
        if key == "model.preset":
            for given in PRESETS.get(text, {}):
                holder[given] = placeholder(holder.get_type(given))
        try:
            holder[name] = _parse(text, kind)
        except (ValueError, KeyError, OverflowError):
            raise UserError(
                f"--config.{key}={text} is not of type {kind.__name__}; its value is now {known[key]!r}"
            ) from None


def check_keys(config: ConfigDict, known: ConfigDict, source: str) -> None:
    """Refuses a config whose keys or types are not those of `known`; `source` says where it is from.

    An int where a float belongs is converted in place.

    Raises:
      UserError: a key is unknown (the message has the nearest one) or missing, or a value is of the wrong type.
    """
    have, want = dict(leaves(config)), dict(leaves(known))
    for key in have:
        if key not in want:
            near = difflib.get_close_matches(key, want, n=1, cutoff=0)
            raise UserError(f"{source}: there is no key {key}; did you mean {near[0]}?")
    missing = [key for key in want if key not in have]
    if missing:
        values = ", ".join(f"{key}={want[key]!r}" for key in missing)
        are, them = ("s {} are", "them") if len(missing) > 1 else (" {} is", "it")
        raise UserError(f"{source}: the key{are.format(', '.join(missing))} missing; add {them}, such as {values}")
    for key in want:
        section, _, name = key.rpartition(".")
        holder, kind = (config[section], known[section].get_type(name)) if section else (config, known.get_type(name))
        if kind is float and type(have[key]) is int:
            if abs(have[key]) >= 2**1024:
                raise UserError(f"{source}: {key} is too large for a float; fix it there")
            with holder.ignore_type():
                holder[name] = float(have[key])
        elif have[key] is None and want[key] is None:
            with holder.unlocked(), holder.ignore_type():
                holder[name] = placeholder(kind)  # JSON's null has no type
        elif type(have[key]) is not kind:
            raise UserError(f"{source}: {key}={have[key]!r} is not of type {kind.__name__}; fix it there")


def path_of(workdir: Path) -> Path:
    """Returns the path of a workdir's config."""
    return workdir / CONFIG_JSON


def read(workdir: Path) -> ConfigDict:
    """Returns the config of a workdir, as resolved by the run that made it.

    Raises:
      UserError: the workdir or its config.json is missing or cannot be read.
    """
    path = path_of(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: it is a file; use a folder")
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder; train first with --config FILE --workdir {workdir}")
    if not path.is_file():
        if any((workdir / "checkpoints").glob("[0-9]*")):
            raise UserError(f"{workdir} has checkpoints but no {CONFIG_JSON}; restore it")
        raise UserError(
            f"--workdir={workdir}: no {CONFIG_JSON} in it; train first with --config FILE --workdir {workdir}"
        )
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it, or use another workdir") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a config; restore it, or use another workdir")
    try:
        return ConfigDict(values)
    except ValueError as error:  # such as a key with a dot in it
        raise UserError(f"{path} is not a config ({error}); restore it, or use another workdir") from None


def write(config: ConfigDict, workdir: Path) -> None:
    """Writes a workdir's config.json, atomically."""
    write_json(path_of(workdir), config.to_dict())


def differences(old: ConfigDict, new: ConfigDict, free: tuple[str, ...] = FREE_KEYS) -> list[str]:
    """Returns `key: old -> new` for every changed key, except those that begin with one of `free`."""
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = [key for key in before | after if not key.startswith(free) and not same(key, before, after)]
    return [f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}" for key in changed]


def same(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a key has the same value in both, or is `train.init_from` and names the same folder."""
    values = before.get(key), after.get(key)
    places = key == "train.init_from" and all(isinstance(value, str) and value for value in values)
    return values[0] == values[1] or (places and real(str(values[0])) == real(str(values[1])))


def parse_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses `argv` into the defined flags and returns the rest, `--config.a.b=value`, as `a.b=value`.

    Raises:
      UserError: an argument is neither.
      flags.Error: absl's own, for a bad or missing flag.
    """
    rest = flag_values(argv, known_only=True)[1:]
    assignments = []
    while rest:
        argument = rest.pop(0)
        name = argument.lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            known = ", ".join(f"--{flag}" for flag in (*MAIN_FLAGS, "config.KEY=VALUE"))
            raise UserError(f"{argument} is not an argument of main.py; it takes {known}")
        if "=" not in name and rest and not rest[0].startswith("--"):
            name += f"={rest.pop(0)}"  # `--config.a.b value`
        assignments.append(name.removeprefix("config."))
    return assignments
