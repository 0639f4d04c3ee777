"""A data set, a model and a config so small that a training call compiles in about a second."""

import atexit
import dataclasses
import shutil
import sys
import tempfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.sharding import AxisType

import main as program
from configs import default
from dit_jax.data import datasets
from dit_jax.experiment import Experiment
from dit_jax.jobs.evaluate import evaluate
from dit_jax.jobs.sample import sample
from dit_jax.jobs.train import train
from dit_jax.jobs.train_classifier import ClassifierExperiment, classifier_config
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from dit_jax.training import sharding
from dit_jax.training.checkpoint import Checkpointer

INFO = datasets.DatasetInfo("tiny", (8, 8, 3), ("red", "green", "blue"))
SEEDS, COUNTS = {"train": 7, "test": 8}, {"train": 40, "test": 24}
LABELS = {"train": (0, 1, 0, 2, 0), "test": (0, 1, 2)}  # repeated cyclically: 24, 8 and 8 training images
DATA_DIR = tempfile.mkdtemp(prefix="dit-jax-tiny-")  # this process's evaluations and latents are saved here
atexit.register(shutil.rmtree, DATA_DIR, ignore_errors=True)
SETTINGS = {
    "data.name": "tiny",
    "data.data_dir": DATA_DIR,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.class_table_width": 8,
    "diffusion.num_steps": 20,
    "optimizer.learning_rate": 0.01,
    "train.steps": 6,
    "train.batch_size": 8,
    "train.steps_per_call": 2,
    "train.ema_half_life": 30.0,
    "train.checkpoint_every": 2,
    "train.log_every": 2,
    "train.sample_every": 0,
    "sample.n": 7,
    "sample.batch_size": 4,
    "sample.steps": 3,
    "evaluate.n": 16,
    "evaluate.features": "classifier",
    "evaluate.training_n": 12,
    "evaluate.training_steps": 3,
    "autoencoder.downsample": 2,
    "autoencoder.channels": 2,
    "autoencoder.width": 4,
    "autoencoder.steps": 2,
    "autoencoder.batch_size": 8,
    "classifier.width": 8,
    "classifier.steps": 2,
    "classifier.crop_padding": 1,
    "classifier.batch_size": 8,
}


def install(monkeypatch):
    """Adds `tiny` to the data sets; it needs no files."""
    monkeypatch.setitem(datasets.DATASETS, "tiny", INFO)
    real = datasets.open_split
    monkeypatch.setattr(
        datasets, "open_split", lambda of, *name: records(*name) if of.name == "tiny" else real(of, *name)
    )


def split(name="train"):
    count, rng = COUNTS[name], np.random.default_rng(SEEDS[name])
    images = rng.integers(0, 256, (count, *INFO.image_shape), dtype=np.uint8)
    return datasets.Split(images, np.resize(np.int32(LABELS[name]), count))


def records(name="train"):
    """Returns `split` behind the interface of data on disk."""
    images, labels = split(name)
    read = lambda indices: datasets.Split(images[indices], labels[indices])  # noqa: E731
    return datasets.Records(len(images), INFO.image_shape, read, lambda indices: labels[indices])


def assignments(**more):
    """Returns `key=value` for every setting; in `more`, two underscores stand for a dot."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in more.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def config(**more):
    """Returns the resolved tiny config; needs `install`."""
    made = default.get_config().lock()
    configs.override(made, assignments(**more))
    return resolve(made)


def on_devices(monkeypatch, count):
    """Makes every mesh created from here on consist of the first `count` of the eight devices."""
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh(count))


def mesh(count):
    return jax.make_mesh((count,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def start(experiment, optimizer=None):
    """Returns (call, fresh state, images, labels) for a training call; `optimizer` replaces the experiment's."""
    if optimizer is not None:
        object.__setattr__(experiment, "optimizer", optimizer)
    data = (sharding.put_replicated(array, experiment.mesh) for array in split())
    return experiment.train_call(), experiment.init_state(), *data


def experiment(**more):
    return Experiment(config(**more))


def run_main(capfd, *arguments):
    """Runs `python main.py ARGUMENTS` in this process; returns its exit code, lines on stderr, and text on stdout."""
    capfd.readouterr()
    with flagsaver.flagsaver():
        for name in ("config", "workdir", "mode", "out", "images"):
            program.FLAGS[name].unparse()
        code = program.main(["main.py", *map(str, arguments)])
    out, err = capfd.readouterr()
    return SimpleNamespace(code=code, err=err.splitlines(), out=out)


def snapshot(folder):
    """Returns the bytes and modification time of every file below a folder."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def flags(**more):
    """Returns the tiny config as command-line flags."""
    root = sys.modules[default.__name__].__file__
    return [f"--config={root}", *(f"--config.{assignment}" for assignment in assignments(**more))]


def trained(folder):
    """Trains four steps on one device in `folder`, for a fixture that outlives a test."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        on_devices(patch, 1)
        train(config(train__steps=4), folder, None)
    return folder


def with_weights(folder, experiment, params):
    """Writes to `folder` a seemingly finished run of `experiment`: averaged weights `params`, raw ones 0."""
    step = np.int32(experiment.config.train.steps)
    raw = jax.tree.map(jnp.zeros_like, params)
    state = dataclasses.replace(experiment.init_state(), step=step, params=raw, ema_params=params)
    configs.write(experiment.config, folder)
    with Checkpointer(folder, keep=1) as checkpointer:
        checkpointer.save(state, experiment.config.to_dict(), {})
    return folder


def with_everything(folder):
    """Like `trained`, with samples, an evaluation, and an untrained classifier (its step takes longest to compile)."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        on_devices(patch, 1)
        made = config(train__steps=4)
        train(made, folder, None)
        classifier = ClassifierExperiment(classifier_config(made))
        configs.write(classifier.config, folder / "classifier")
        with Checkpointer(folder / "classifier", keep=1) as checkpointer:
            checkpointer.save(classifier.init_state(), classifier.config.to_dict(), {})
        sample(made, folder, None)
        evaluate(made, folder, None)
    return folder
