"""main.py as users run it: the files that a run leaves, and one line of error for every mistake."""

import json
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from clu import asynclib
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from configs import default
from dit_jax import errors
from dit_jax.data import shapes
from dit_jax.experiment import Experiment
from dit_jax.jobs import modes
from dit_jax.jobs.train import train
from dit_jax.settings import configs
from tests import tiny

SMALL = ["model.patch_size=8", "model.width=16", "model.depth=1", "model.num_heads=2", "model.num_kv_heads=1",
         "model.class_table_width=8", "train.log_every=4", "train.checkpoint_every=4", "train.steps_per_call=2",
         "train.steps=24", "train.sample_every=12", "sample.n=5", "sample.steps=3"]  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The folder of the data set `shapes`, cut to 64 training images."""
    folder = tmp_path_factory.mktemp("small shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_EXAMPLES", {"train": 64, "test": 10})
        shapes.prepare(folder)
    return folder


def command(*arguments):
    return [sys.executable, "main.py", *map(str, arguments)]


def main_py(*arguments):
    """Runs main.py in a process of its own, on one device."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=1200)


def training(data_dir, workdir, *more):
    flags = [f"--config.{assignment}" for assignment in (*SMALL, f"data.data_dir={data_dir}", *more)]
    return ["--config", "configs/shapes.py", "--workdir", workdir, *flags]


@pytest.fixture(scope="session")
def whole(data_dir, tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "made by main" / "ünbroken"
    done = main_py(*training(data_dir, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_is_promised(whole):
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["16", "20", "24"]
    config = json.loads((whole / "config.json").read_text())
    assert config["model"]["positions"] == "grid"  # the preset's
    assert config["train"]["steps"] == 24
    assert [row["step"] for row in rows(whole)] == [4, 8, 12, 16, 20, 24]
    keys = {
        "step",
        "images",
        "loss",
        "loss_q1",
        "loss_q2",
        "loss_q3",
        "loss_q4",
        "grad_norm",
        "learning_rate",
        "images_per_s",
    }
    assert all(keys <= set(row) for row in rows(whole))
    assert [row["images"] for row in rows(whole)] == [16 * row["step"] for row in rows(whole)]
    # Warm-up of 100 steps to 0.003: step 24 uses 24 hundredths of it.
    assert rows(whole)[-1]["learning_rate"] == pytest.approx(0.003 * 0.24, rel=1e-5)
    with Image.open(whole / "loss.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    tags = {
        value.tag for f in whole.glob("events.*") for e in EventFileLoader(str(f)).Load() for value in e.summary.value
    }
    assert {"loss", "samples", "parameters"} <= {tag.split("/")[0] for tag in tags}
    assert not list(whole.rglob("*.tmp"))


def test_the_finished_run_is_left_alone(whole, data_dir):
    before = tiny.snapshot(whole)
    done = main_py(*training(data_dir, whole))
    assert done.returncode == 0
    assert "all of its 24 steps" in done.stderr
    assert tiny.snapshot(whole) == before


def test_sampling(whole, tmp_path):
    out = tmp_path / "pictures of it"
    flags = ["--config.sample.labels=[blue star, 0]", "--config.sample.n", "5", "--config.sample.batch_size=2"]
    done = main_py("--mode=sample", "--workdir", whole, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    assert str(out / "samples.npz") in done.stderr
    with np.load(out / "samples.npz") as file:
        assert set(file) == {"images", "labels"}
        images, labels = file["images"], file["labels"]
    assert images.dtype == np.uint8
    assert images.shape == (5, 32, 32, 3)
    star = shapes.CLASS_NAMES.index("blue star")
    assert list(labels) == [star, 0, star, 0, star]
    with Image.open(out / "grid.png") as grid:
        grid.load()
    assert not (whole / "samples").exists()


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = main_py("--config=configs/shapes.py", "--workdir", tmp_path / "w", "--config.train.batchsize=8")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --config.train.batchsize: there is no such key; did you mean --config.train.batch_size?\n"
    )
    assert done.stdout == ""
    assert not (tmp_path / "w").exists()


def test_help():
    done = main_py("--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout


@pytest.fixture
def tiny_data(monkeypatch):
    tiny.install(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir of two steps, made in this process."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        train(tiny.config(train__steps=2), folder, None)
    return folder


TRAIN_MISTAKES = {
    "misspelt key": (["--config.train.batchsize=8"], "did you mean --config.train.batch_size"),
    "wrong type": (["--config.train.steps=many"], "--config.train.steps=many is not of type int"),
    "missing value": (["--config.seed"], "--config.seed has no value"),
    "patch": (["--config.model.patch_size=3"], "model.patch_size=3: it must divide the size of the images, 8 x 8"),
    "heads": (["--config.model.num_heads=3"], "model.num_heads=3: it must divide model.width=16"),
    "kv heads": (["--config.model.num_kv_heads=3"], "use one of [1, 2]"),
    "devices": (["--config.train.batch_size=12"], "train.batch_size=12 does not split over 8 devices; use a multiple"),
    "too large a batch": (["--config.train.batch_size=48"], "train.batch_size=48: the data has only 40 images"),
    "no steps": (["--config.diffusion.num_steps=0"], "diffusion.num_steps=0"),
    "beta": (["--config.diffusion.beta_end=1"], "diffusion.beta_end=1.0: a beta lies between 0 and 1"),
    "label": (["--config.sample.labels=purple"], "the classes are 0 red, 1 green, 2 blue"),
    "unknown data": (["--config.data.name=imagenet"], "choose one of shapes, cifar10, tiny"),
    "missing data": (
        ["--config.data.name=cifar10", "--config.data.data_dir={tmp}/none"],
        "python -m dit_jax.data.cifar10",
    ),
    "stray word": (["stray"], "stray is not an argument"),
    "unknown flag": (["--seed=3"], "--seed=3 is not an argument"),
    "unknown mode": (["--mode=trian"], "--mode=trian"),
    "out while training": (["--out=x"], "--out=x: training writes to --workdir"),
    "workdir is a file": (["--workdir={tmp}/file"], "it is a file; use a folder"),
    "workdir that Orbax cannot name": (["--workdir={tmp}/lr[1]"], "lr[1] because of the [ in it; use another folder"),
    "workdir for any name": (["--workdir={tmp}/a**b"], "a**b because of the ** in it; use another folder"),
    "workdir of another system": (["--workdir={tmp}/a\\b"], "a\\b because of the \\ in it; use another folder"),
    "workdir that is no text": (["--workdir={tmp}/z\udcff"], "/z?: its path is not UTF-8; use another folder"),
    "a bucket": (["--workdir=gs://bucket/run"], "gs://bucket/run: it is an address, not a path on this machine"),
    "data in a bucket": (["--config.data.name=shapes", "--config.data.data_dir=s3://b"], "s3://b: it is an address"),
    "no out": (["--out="], "--out='': perhaps a variable is unset; give a folder or a file, or omit it"),
    "no images": (["--mode=evaluate", "--images="], "--images='': perhaps a variable is unset"),
    "nobody's home": (["--config.data.name=shapes", "--config.data.data_dir=~nosuch/x"], "write the full path"),
    "workdir below a file": (["--workdir={tmp}/file/w"], "use a folder that you can write to"),
    "checkpoints are a file": (["--workdir={tmp}/odd"], "checkpoints is a file; move it elsewhere"),
    "data_dir is a file": (["--config.data.name=shapes", "--config.data.data_dir={tmp}/file"], "must be a folder"),
}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_a_mistake_in_training_is_one_line_before_anything_happens(mistake, tiny_data, tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for name in ("w", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "odd" / "checkpoints").write_text("mine")
    before = tiny.snapshot(tmp_path)
    if mistake == "missing data":
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(Experiment, "init_state", must_not_come_so_far)
    arguments, told = TRAIN_MISTAKES[mistake]
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path / "w", *arguments)
    assert done.code == 2
    if mistake == "missing data":
        assert done.err.pop(0).startswith("preparing the data set cifar10")  # it tried
        (tmp_path / "none/cifar10/.lock").unlink()
    assert len(done.err) == 1
    assert done.err[0].startswith("error: ")
    assert told in done.err[0]
    assert tiny.snapshot(tmp_path) == before
    assert list((tmp_path / "w").iterdir()) == []


def refuse(*_):
    raise OSError("no network here")


def by_a_thread(error):
    """Returns the error as clu raises it after a thread that one of its threads had started failed."""
    for _ in range(2):
        wrapped = asynclib.AsyncError("occurred ASYNCHRONOUSLY")
        wrapped.__cause__, error = error, wrapped
    return error


def must_not_come_so_far(_):
    raise AssertionError("the first state was computed before the mistake was told")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            MemoryError("Unable to allocate 1 PiB"),
            "out of memory (Unable to allocate 1 PiB); lower the n or batch_size of what was running, or set",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile"),
            "out of memory (Out of memory while);",
        ),
        (
            by_a_thread(OSError(28, "No space left on device", "W/events")),
            "No space left on device: W/events; make room",
        ),
        (
            IsADirectoryError(21, "Is a directory", "W/loss.png"),
            "Is a directory: W/loss.png; move that folder elsewhere, or use another folder",
        ),
        (
            NotADirectoryError(20, "Not a directory", "W/x/y"),
            "Not a directory: W/x/y; move the file that is in the way, or use another folder",
        ),
        (PermissionError(13, "Permission denied", "W"), "Permission denied: W; fix that, or use another folder"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, told, tiny_data, tmp_path, capfd, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(modes, "run", refuse)
    done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path)
    assert (done.code, len(done.err)) == (2, 1)
    assert done.err[0].startswith(f"error: {told}")


def test_a_thread_is_silent_of_what_is_told_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(threading, "excepthook", None)
    errors.quieten_threads()
    for error in (OSError(28, "No space left on device"), ValueError("a bug")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    told = capsys.readouterr().err
    assert "No space left" not in told
    assert "a bug" in told


def test_home_is_found_behind_an_equals_sign(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = tiny.run_main(capfd, "--mode=sample", "--workdir=~/nothing")
    assert done.code == 2
    assert f"--workdir={tmp_path}/nothing: no such folder" in done.err[0]


def test_a_bug_keeps_its_traceback(tiny_data, tmp_path, capfd, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(modes, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path)


SAMPLE_MISTAKES = {
    "another model": (["--config.model.width=32"], "another config (model.width: 16 -> 32)"),
    "another config file": (["--config=configs/shapes.py"], "another config (data.flip"),
    "label": (["--config.sample.labels=0,3"], "there is no class '3'; the classes are 0 red"),
    "guidance": (["--config.sample.guidance=-2"], "sample.guidance=-2.0"),
    "task": (["--config.sample.task=dream"], "sample.task=dream is not known"),
    "no images": (["--config.sample.task=image_to_image"], "set --config.sample.images"),
    "images for nothing": (["--config.sample.images={tmp}/file"], "sample.images="),
    "images missing": (
        ["--config.sample.task=image_to_image", "--config.sample.images={tmp}/nothing.npz"],
        "there is no such file or folder",
    ),
    "no mask": (["--config.sample.task=inpaint", "--config.sample.images={tmp}/file"], "needs a picture that is white"),
    "strength": (["--config.sample.strength=0"], "sample.strength=0.0"),
    "inversion by another sampler": (
        ["--config.sample.task=invert", "--config.sample.images={tmp}/file"],
        "invert needs ddim with sample.eta=0",
    ),
    "inversion with guidance": (
        [
            "--config.sample.task=invert",
            "--config.sample.images={tmp}/file",
            "--config.sample.sampler=ddim",
            "--config.sample.guidance=2",
        ],
        "guidance cannot be traced back",
    ),
    "out is a file": (["--out={tmp}/file"], "it is a file"),
    "out below a file": (["--out={tmp}/file/x"], "cannot be written"),
    "a folder where nothing can be written": (["--out=/proc/self"], "cannot be written"),
    "no workdir": (["--workdir={tmp}/nothing"], "no such folder; train first"),
    "workdir is a file": (["--workdir={tmp}/file"], "it is a file; use a folder"),
    "empty workdir": (["--workdir={tmp}"], "no config.json in it; train first"),
    "no checkpoint": (["--workdir={tmp}/killed early"], "no checkpoint in it yet; train first"),
    "no flag": (["--workdir="], "--workdir is missing"),
}


@pytest.mark.parametrize("mistake", SAMPLE_MISTAKES)
def test_a_mistake_in_sampling_is_one_line(mistake, trained, tiny_data, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "killed early").mkdir()
    configs.write(tiny.config(), tmp_path / "killed early")
    before, before_run = tiny.snapshot(tmp_path), tiny.snapshot(trained)
    arguments, told = SAMPLE_MISTAKES[mistake]
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = tiny.run_main(capfd, "--mode=sample", "--workdir", trained, *arguments)
    assert done.code == 2
    assert len(done.err) == 1
    assert done.err[0].startswith("error: ")
    assert told in done.err[0]
    assert tiny.snapshot(tmp_path) == before
    assert tiny.snapshot(trained) == before_run


def test_a_workdir_of_another_config_lists_the_difference(trained, tiny_data, capfd):
    before = tiny.snapshot(trained)
    done = tiny.run_main(capfd, *tiny.flags(train__steps=2, model__depth=2, seed=5), "--workdir", trained)
    assert done.code == 2
    assert "model.depth: 1 -> 2; seed: 0 -> 5" in done.err[0]
    assert tiny.snapshot(trained) == before


@pytest.mark.long
def test_free_keys_may_change_and_the_run_goes_on(trained, tiny_data, tmp_path, capfd):
    done = tiny.run_main(capfd, "--workdir", trained, "--config.train.steps=4", "--config.train.log_every=1")
    assert done.code == 0
    assert [row["step"] for row in rows(trained)] == [2, 3, 4]
    images = {}
    for name, flags in {
        "plain": [],
        "again": [],
        "seed": ["--config.sample.seed=1"],
        "guided": ["--config.sample.guidance=3"],
    }.items():
        out = tmp_path / name
        assert tiny.run_main(capfd, "--mode=sample", "--workdir", trained, "--out", out, *flags).code == 0
        images[name] = np.load(out / "samples.npz")["images"]
    np.testing.assert_array_equal(images["plain"], images["again"])
    assert np.any(images["plain"] != images["seed"])
    assert np.any(images["plain"] != images["guided"])


def test_every_default_key_has_a_flag_of_its_type():
    for key, value in configs.leaves(default.get_config()):
        if value is not None:
            config = default.get_config()
            configs.override(config, [f"{key}={value}"])
            assert dict(configs.leaves(config))[key] == value


def test_checkpoints_of_an_unknown_config_are_refused(trained, tiny_data, tmp_path, capfd):
    """An empty checkpoints folder is what a run killed at its start leaves, and is no reason to refuse."""
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path)
    assert done.code == 2
    assert "has checkpoints but no config.json" in done.err[0]
    for mode in ("train", "sample"):
        done = tiny.run_main(capfd, f"--mode={mode}", "--workdir", tmp_path)
        assert done.err == [f"error: {tmp_path} has checkpoints but no config.json; restore it"]
    (tmp_path / "checkpoints" / "2").rmdir()
    assert tiny.run_main(capfd, *tiny.flags(train__steps=2), "--workdir", tmp_path).code == 0
