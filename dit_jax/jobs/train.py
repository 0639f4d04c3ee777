"""The mode train: trains a run. What it computes is in experiment.py, what it shows in reporting/."""

import contextlib
import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from dit_jax import evaluations
from dit_jax.companions.autoencoder import with_codec
from dit_jax.data import datasets
from dit_jax.data.pipeline import steps_per_epoch
from dit_jax.experiment import Experiment, Sample
from dit_jax.jobs import training_evaluation
from dit_jax.jobs.latents import training_records
from dit_jax.jobs.starting import check_source, first_state
from dit_jax.reporting.images import label_grid, to_uint8
from dit_jax.reporting.writer import MetricWriter, create_writer
from dit_jax.settings import configs
from dit_jax.settings.checks import require
from dit_jax.system import environment
from dit_jax.system.lock import only_trainer
from dit_jax.system.progress import Progress
from dit_jax.system.stop import Stop
from dit_jax.system.together import check_alike, first_before_others, is_first, whole
from dit_jax.training import loop
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import TrainState
from dit_jax.workdir import ANOTHER, begun, check_nothing_lost, check_savable, check_workdir, make_folder

logger = logging.getLogger(__name__)
MANY_EPOCHS = 1_000  # the CIFAR-10 recipes here have 200; others train for a few thousand on 50,000 images
WATCH_PER_CLASS, WATCH_CLASSES, WATCH_STEPS = 4, 10, 25  # of the grid drawn during training: DDIM, small and quick


def train(config: ConfigDict, workdir: Path, out: Path | None) -> int:
    """Trains a run in `workdir`, or resumes the one that is there; at the end, draws `loss.png`.

    Returns the exit code: 0, or `Stop`'s if the run was ended early and saved.

    Raises:
      UserError: the workdir holds another run or is in use, the data or the autoencoder is missing, or the batch does
        not fit the devices or the data; later, the disk is full, or too many steps in a row were not finite.
      EndedError: it was asked to end while it encoded latents.
    """
    require(out is None, "--out", out, "training writes to --workdir; omit --out")
    check_workdir(workdir, config)
    return run_training(with_codec(workdir, config), workdir)


def run_training(
    experiment: Experiment, workdir: Path, free: tuple[str, ...] = configs.FREE_KEYS, fix: str = ANOTHER
) -> int:
    """Does the same as `train` for any experiment, and returns the exit code.

    A resumed run may change the keys `free`; `fix` tells the user what to do after changing others. A companion network
    is measured after its last step, so if it was asked to end during that step, `Stop`'s code is returned as well.
    """
    config, section = experiment.config, experiment.section
    stop = Stop(config.train.max_seconds)  # its time limit includes preparing the data
    check_workdir(workdir, config, free, fix)
    check_savable(workdir)
    batch_size, best = config.train.batch_size, partial(evaluations.best_step, workdir)
    experiment.check_devices()
    check_source(config, workdir)
    evaluation = training_evaluation.prepare(experiment, workdir)
    images, probe = open_training_images(experiment, workdir)
    with contextlib.ExitStack() as stack:
        if is_first():
            make_folder(workdir, "--workdir")
        stack.enter_context(stop)
        stack.enter_context(only_trainer(workdir))
        check_workdir(workdir, config, free, fix)  # again, as others can no longer write there
        checkpointer = stack.enter_context(Checkpointer(workdir, config.train.keep_checkpoints, best=best))
        state = checkpointer.restore(experiment.abstract_state())
        if state is None and is_first():
            check_nothing_lost(workdir)
        step = 0 if state is None else int(state.step)
        if is_first():
            evaluations.drop_after(workdir, step)
        owed = training_evaluation.owed(config, workdir, step)
        if step >= config.train.steps and not owed:
            finished(workdir, step, section)
            return 0
        records = training_records(experiment, images, probe, stop)
        feed = stack.enter_context(contextlib.closing(experiment.feed(records)))
        if feed.streamed:
            logger.info("the data (%.1f GiB decoded) is read from disk at each step", records.nbytes / 2**30)
        warn_of_new_decay(workdir, config, step, section)
        if is_first():
            configs.write(config, workdir)
            environment.record(workdir, step)
        logger.info("%s %s at step %d of %d", "resuming" if step else "starting", workdir, step, config.train.steps)
        writer = stack.enter_context(contextlib.closing(create_writer(workdir, resume_step=step)))
        state = first_state(experiment) if state is None else state
        describe(writer, config, state, step)
        progress = stack.enter_context(Progress(config.train.steps, "step", step, batch_size))
        hooks = make_hooks(experiment, writer, checkpointer, progress, stop, records.count)
        if evaluation is not None:
            hooks = dataclasses.replace(hooks, evaluate=evaluation(writer, stop))
        call = experiment.train_call(feed.streamed)
        compiled = call.lower(state, loop.zero_sums(), *feed.shapes, np.int32(1)).compile()
        feed.ready()
        stop.listen()  # until here there is nothing to save, so a signal may end the process
        step = loop.run(compiled, state, feed, pace_of(config, section), batch_size, hooks)
    if step < config.train.steps or training_evaluation.owed(config, workdir, step):
        logger.info("saved step %d of %d in %s; the same command resumes the run", step, config.train.steps, workdir)
        return stop.code
    draw_loss(workdir)
    logger.info("trained %d steps; the checkpoint and loss.png are in %s", config.train.steps, workdir)
    if section == "train" or not stop.at_last():
        return 0
    logger.info("its quality was not measured: the same command will measure it")
    return stop.code


def open_training_images(experiment: Experiment, workdir: Path) -> tuple[datasets.Records, list[Any]]:
    """Returns the training images, prepared if necessary, and their `probe`, which is the same in all processes.

    Raises:
      UserError: the data is missing or differs between processes, or it is too small for a batch or an evaluation.
    """
    section, batch_size = experiment.section, experiment.config.train.batch_size
    with first_before_others():
        find_data(experiment, workdir)
        images = datasets.open_split(experiment.source, "train")
        fewer = f"the data has only {images.count} images; use no more"
        require(batch_size <= images.count, f"{section}.batch_size", batch_size, fewer)
        training_evaluation.check_sets(experiment, images.count)
        if section == "train":
            warn_of_many_epochs(experiment.config, images.count)
    probe = images.probe()
    check_alike("data", probe, "each data.data_dir must hold the same data")
    return images, probe


def find_data(experiment: Experiment, workdir: Path) -> None:
    """Notes in the config which content of a folder of pictures is used; `refresh` logs if a resumed run had another.

    Raises:
      UserError: the folder cannot be used, or has other classes than the run.
    """
    data = experiment.config.data
    if experiment.source.folder:
        if known := begun(workdir):
            data.content = known.data.content
        folder = datasets.refresh(experiment.source).folder
        assert folder is not None
        data.content = folder.content


def finished(workdir: Path, step: int, section: str) -> None:
    """Logs that nothing is left to train; draws `loss.png` if missing or old. `section` has the number of steps."""
    logger.info("%s has done all of its %d steps; to continue, set --config.%s.steps higher", workdir, step, section)
    picture, rows = workdir / "loss.png", workdir / "metrics.jsonl"
    missing = not picture.exists() or (rows.exists() and picture.stat().st_mtime < rows.stat().st_mtime)
    if missing:  # the run was killed between its last save and this picture
        draw_loss(workdir)


def draw_loss(workdir: Path) -> None:
    """Draws `loss.png` in the first process."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's may not be installed here, and the picture needs none
    from dit_jax.reporting.plots import plot_loss  # imported here, as no start should wait for matplotlib

    if is_first():
        plot_loss(workdir / "metrics.jsonl", workdir / "loss.png")


def warn_of_many_epochs(config: ConfigDict, count: int) -> None:
    """Warns if the `count` training images will be seen so often that a model may memorise them."""
    steps, batch_size = config.train.steps, config.train.batch_size
    epochs = steps * batch_size // count
    if epochs > MANY_EPOCHS:
        told = "warning: %d steps of %d images are %d epochs of all %d, which a model may memorise; %s"
        fix = "to avoid that, use fewer steps, a smaller model or another run's weights (train.init_from)"
        logger.warning(told, steps, batch_size, epochs, count, fix)


def warn_of_new_decay(workdir: Path, config: ConfigDict, step: int, section: str) -> None:
    """Warns if a resumed run's cosine schedule now ends at another step, which makes it another run."""
    if step and config.optimizer.schedule == "cosine":
        before = configs.read(workdir).train.steps
        if before != config.train.steps:
            change = f"{before} -> {config.train.steps}"
            logger.warning(
                "%s.steps: %s moves the end of the cosine schedule; from here on this is another run", section, change
            )


def pace_of(config: ConfigDict, section: str = "train") -> loop.Pace:
    """Returns when the loop logs, saves, draws and evaluates; `section` is the experiment's."""
    t = config.train
    return loop.Pace(
        steps=t.steps,
        steps_per_call=t.steps_per_call,
        log_every=t.log_every,
        checkpoint_every=t.checkpoint_every,
        sample_every=t.sample_every,
        max_bad_steps=t.max_bad_steps,
        evaluate_every=config.evaluate.every_steps,
        section=section,
    )


def describe(writer: MetricWriter, config: ConfigDict, state: TrainState, step: int) -> None:
    """Writes the parameter overview and the hyperparameters to TensorBoard, and logs the number of parameters."""
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    logger.info("%s parameters", f"{parameter_overview.count_parameters(state.params):,}")
    writer.write_texts(step, {"parameters": f"```\n{overview}\n```"})
    writer.write_hparams(dict(configs.leaves(config)))


def make_hooks(
    experiment: Experiment,
    writer: MetricWriter,
    checkpointer: Checkpointer,
    progress: Progress,
    stop: Stop,
    num_examples: int,
) -> loop.Hooks:
    """Returns what the loop calls to log, save, draw and show progress, and to ask whether to end early."""
    config, batch_size = experiment.config, experiment.config.train.batch_size
    per_epoch = steps_per_epoch(num_examples, batch_size)

    def log(step: int, row: loop.Row) -> None:
        rate = np.asarray(experiment.learning_rate(step - 1)).item()
        seen = {"images": step * batch_size, "epoch": step / per_epoch}
        writer.write_scalars(step, seen | row | {"learning_rate": rate})
        checkpointer.check()

    save = partial(checkpointer.save, config=config.to_dict())
    watch = partial(
        watch_samples, experiment, writer, experiment.sampler("ddim", min(WATCH_STEPS, config.diffusion.num_steps))
    )
    return loop.Hooks(log, lambda state, row: save(state, metrics=row), watch, progress.update, stop)


def watch_samples(experiment: Experiment, writer: MetricWriter, sample: Sample, step: int, state: TrainState) -> None:
    """Writes a small grid of the EMA weights' samples to TensorBoard, from the same noise every time."""
    names = experiment.info.class_names
    labels = np.repeat(np.arange(min(len(names), WATCH_CLASSES)), WATCH_PER_CLASS)
    images = to_uint8(whole(sample(state.ema_params, jax.random.key(experiment.config.sample.seed), labels)))
    writer.write_images(step, {"samples": label_grid(images, labels, names)[None]})
