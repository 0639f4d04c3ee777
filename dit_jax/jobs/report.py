"""The mode report: writes one page with everything that a workdir says about its run, and nothing else."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dit_jax.data import datasets
from dit_jax.data.images import Images, open_images
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.jobs.report_commands import commands_of
from dit_jax.jobs.report_nearest import features_at_hand, memorisation_of
from dit_jax.reporting.images import BROKEN_PNG, about_png
from dit_jax.reporting.jsonl import number
from dit_jax.reporting.markup import Html, missing
from dit_jax.reporting.report import Report, draw_page
from dit_jax.reporting.report_figures import Clock
from dit_jax.reporting.report_images import denoising_section, neighbours_section, samples_section
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.system import environment
from dit_jax.system.files import replacing
from dit_jax.system.jsonl import read_objects
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir, make_folder

logger = logging.getLogger(__name__)
FROM_NOISE = ("generate", "interpolate")  # sampling tasks that start from noise


def report(config: ConfigDict, workdir: Path, out: Path | None) -> None:
    """Writes `report.html` to `out` (default: WORKDIR) from what the workdir has; the page says what is missing.

    Raises:
      UserError: the workdir has no config or no log yet, it holds another run, or `out` is a file.
    """
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    out = out or workdir
    require(not out.exists() or out.is_dir(), "--out", out, "it is a file; use a folder")
    rows, notes = read_log(workdir)
    make_folder(out, "--out")
    evaluations = read_evaluations(workdir, notes)
    experiment, commands = Experiment(config), commands_of(config, workdir, evaluations)
    sessions = read_noting(workdir / environment.SESSIONS, notes)
    samples, neighbours = samples_and_neighbours(experiment, workdir, commands)
    shapes = jax.tree.leaves(jax.eval_shape(experiment.init_params))
    page = draw_page(
        Report(
            name=workdir.resolve().name or str(workdir),
            data=config.data.name,
            rows=rows,
            evaluations=evaluations,
            clock=clock_of(rows, evaluations, config.train.batch_size),
            steps=config.train.steps,
            parameters=sum(math.prod(leaf.shape) for leaf in shapes),
            samples=samples,
            denoising=read_denoising(workdir / "samples" / "denoising.png", commands["sample"]),
            neighbours=neighbours,
            settings=list(configs.leaves(config)),
            sessions=sessions,
            here=environment.facts(),
            commands=commands,
            drawn=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            notes=notes,
        )
    )
    with replacing(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    logger.info("%s: %.1f MB, opens in any browser", out / "report.html", len(page) / 1e6)


def read_log(workdir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns (rows of metrics.jsonl, notes on damaged lines). Raises UserError if there is no config or no row."""
    configs.read(workdir)
    notes: list[str] = []
    found = read_noting(workdir / "metrics.jsonl", notes)
    rows = [row for row in found if type(row.get("step")) is int and 0 <= row["step"] < 2**53]
    if not rows and notes:
        raise UserError(
            f"--workdir={workdir}: nothing to report ({notes[0].rstrip('.')}); restore metrics.jsonl, or train"
        )
    if not rows:
        raise UserError(
            f"--workdir={workdir}: metrics.jsonl has no rows yet, so there is nothing to report; train first with "
            f"python main.py --workdir {workdir}"
        )
    return rows, notes


def read_noting(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Returns the objects in a file of JSON lines; logs and notes lines, or a whole file, that cannot be read."""
    try:
        objects, damaged = read_objects(path)
    except OSError as error:
        notes.append(f"{path.name} cannot be read and is skipped.")
        logger.warning("%s cannot be read (%s) and is skipped", path, error.strerror)
        return []
    if damaged:
        lines = "1 line cannot be read and is" if damaged == 1 else f"{damaged} lines cannot be read and are"
        notes.append(f"{path.name}: {lines} skipped.")
        logger.warning("%s: %s skipped", path, lines)
    return objects


def read_evaluations(workdir: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of evaluations.jsonl, and those in the JSON files beside it that it lacks."""
    rows = read_noting(workdir / "evaluations.jsonl", notes)
    for name in ("evaluation.json", "evaluation_images.json"):
        try:
            found = json.loads((workdir / name).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            notes.append(f"{name} cannot be read and is skipped.")
            logger.warning("%s cannot be read and is skipped", workdir / name)
            continue
        if isinstance(found, dict) and found not in rows:
            rows.append(found)
    return rows


def clock_of(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], batch_size: int) -> Clock:
    """Returns the images per step, and the steps per epoch by the log or else by an evaluation's training split."""
    for row in reversed(rows):
        epoch = number(row.get("epoch"))
        if epoch and row["step"]:
            return Clock(batch_size, row["step"] / epoch)
    for row in evaluations:
        count = number(row.get("reference_n"))
        if count and row.get("reference_split") == "train":
            return Clock(batch_size, max(1, count // batch_size))
    return Clock(batch_size, None)


def samples_and_neighbours(experiment: Experiment, workdir: Path, commands: dict[str, str]) -> tuple[Html, Html]:
    """Returns the sections on the workdir's samples: by class, and beside their nearest training images."""
    folder, info, how = workdir / "samples", experiment.info, commands["sample"]
    none = missing("Without samples, there is nothing to compare with the training images.")
    if not (folder / "samples.npz").is_file():
        return missing(
            "No samples have been drawn yet. Once there is a checkpoint, this command draws them:", how
        ), none
    try:
        samples = open_images(folder / "samples.npz", info.image_shape, len(info.class_names), "samples")
    except UserError as error:
        return missing(f"The samples cannot be shown: {error}. This command draws them again:", how), none
    images = np.concatenate(list(samples.chunks()))
    about = about_png(folder / "grid.png")
    if about.get("images_sha256") != hashlib.sha256(images.tobytes()).hexdigest():
        about = {}  # the grid is of other samples
    shown = samples_section(images, samples.labels, info.class_names, about)
    return shown, nearest_section(experiment, workdir, samples, about, commands)


def nearest_section(
    experiment: Experiment, workdir: Path, samples: Images, about: dict[str, Any], commands: dict[str, str]
) -> Html:
    """Returns the section with samples beside their nearest training images, or the reason why it is missing."""
    task = about.get("task", "generate")
    if task not in FROM_NOISE:
        return missing(
            f"These samples started from given images (sample.task={task}), so a likeness to training "
            "images is no sign of memorisation. This command draws some from noise:",
            commands["sample"],
        )
    notes = []
    try:
        train = datasets.open_split(experiment.source, "train")
        extractor = features_at_hand(experiment.config, workdir, experiment)
        try:
            test = datasets.open_split(experiment.source, "test")
        except UserError as error:  # there are none, or they are damaged
            test = None
            notes.append(missing(f"There are no ratios of unseen real images to compare with: {error}."))
        found = memorisation_of(experiment, samples, train, test, extractor)
    except UserError as error:
        return missing(f"The training images nearest to the samples cannot be found: {error}.")
    if extractor is None:
        why = (
            "Distances by features are missing: the workdir has no classifier, and Inception's weights were not found. "
            "This command trains the classifier:"
        )
        notes.append(missing(why, commands["train_classifier"]))
    return neighbours_section(found, notes)


def read_denoising(path: Path, how: str) -> Html:
    """Returns the section on the denoising, from the picture that the mode `sample` leaves."""
    if not path.is_file():
        return missing(
            "There is no picture of the denoising yet. Once there is a checkpoint, this command draws it:", how
        )
    try:
        with Image.open(path, formats=["PNG"]) as strip:
            strip.load()
            return denoising_section(strip, about_png(path))
    except Image.DecompressionBombError:
        return missing(f"{path.name} is too large for this page; open the file itself.")
    except BROKEN_PNG as error:
        return missing(f"{path.name} cannot be read ({error}). This command draws it again:", how)
