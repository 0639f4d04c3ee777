"""The command lines on a report's page: those that continue in its workdir, and those that repeat the run elsewhere."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import default
from dit_jax.errors import UserError
from dit_jax.evaluations import TRAINING
from dit_jax.models.dit import PRESETS
from dit_jax.reporting.images import about_png
from dit_jax.settings import configs

AGAIN = "runs/again"  # the workdir in which those commands repeat the run
AFTER_TRAINING = ("train_classifier", "sample", "evaluate")  # the modes whose commands the page shows, in their order


def commands_of(config: ConfigDict, workdir: Path, evaluations: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
    """Returns command lines by mode, `resume` and `again`; `evaluations` are the workdir's rows, the newest last."""
    resume = f"python main.py --workdir {shlex.quote(str(workdir))}"
    commands = {mode: f"{resume} --mode={mode}" for mode in (*AFTER_TRAINING, "report")}
    first = ["train_autoencoder"] * config.model.latents
    first += ["train_classifier"] * (config.evaluate.every_steps > 0 and config.evaluate.features == "classifier")
    flags, later = overrides(config), flags_of_modes(config, workdir, evaluations)
    begin = f"--config configs/default.py --workdir {AGAIN}"
    again = [_lines(f"python main.py --mode={mode} {begin}", _merged(flags, later.get(mode, ()))) for mode in first]
    again += [_lines(f"python main.py {begin}", flags)]
    again += [
        _lines(f"python main.py --workdir {AGAIN} --mode={mode}", later[mode])
        for mode in AFTER_TRAINING
        if mode not in first
    ]
    return commands | {"resume": resume, "again": "\n".join(again)}


def overrides(config: ConfigDict) -> list[str]:
    """Returns `--config.KEY=VALUE` for every key of a resolved config that differs from default.py and its preset."""
    plain = dict(configs.leaves(default.get_config()))
    preset = {f"model.{key}": value for key, value in PRESETS[config.model.preset].items()}
    known = plain | {key: value for key, value in preset.items() if plain.get(key) is None}
    known["autoencoder.sha256"] = config.autoencoder.sha256  # the repeated run trains its own autoencoder
    changed = [(key, value) for key, value in configs.leaves(config) if value is not None and known.get(key) != value]
    return [_flag(key, value) for key, value in changed]


def flags_of_modes(config: ConfigDict, workdir: Path, evaluations: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns, for each mode in `AFTER_TRAINING`, the flags that made what is in the workdir.

    Only training stores its flags. The others are read, as far as possible, from the classifier's config, the settings
    stored in `grid.png`, and the newest evaluation.
    """
    try:
        classifier = configs.read(workdir / "classifier").to_dict().get("classifier")
    except UserError:
        classifier = None
    judged = [row for row in evaluations if row.get("during") != TRAINING and "sampler" in row]
    row = judged[-1] if judged else {}
    asked = {key: row[key] for key in ("n", "features") if key in row}
    drawn_as = {key: value for key, value in row.items() if key not in asked}
    return {
        "train_classifier": _changed(config, "classifier", classifier if isinstance(classifier, dict) else {}),
        "sample": _changed(config, "sample", about_png(workdir / "samples" / "grid.png")),
        "evaluate": _changed(config, "evaluate", asked) + _changed(config, "sample", drawn_as),
    }


def _changed(config: ConfigDict, section: str, found: Mapping[str, Any]) -> list[str]:
    """Returns flags for the values `found` that differ from the config's section; skips values of the wrong type."""
    both = [(key, value, found[key]) for key, value in config[section].items() if key in found]
    kinds = {float: (float, int)}
    changed = [(key, new) for key, old, new in both if new != old and isinstance(new, kinds.get(type(old), type(old)))]
    return [_flag(f"{section}.{key}", value) for key, value in changed]


def _flag(key: str, value: Any) -> str:
    return f"--config.{key}={shlex.quote(str(value))}"


def _merged(flags: Sequence[str], more: Sequence[str]) -> list[str]:
    """Returns all flags, without those of `flags` whose key `more` has too."""
    return list({flag.partition("=")[0]: flag for flag in (*flags, *more)}.values())


def _lines(command: str, flags: Sequence[str]) -> str:
    return " \\\n    ".join([command, *flags])
