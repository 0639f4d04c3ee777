"""Two processes of two devices each as one run: signalled, killed, failing; the reference is a run of one process."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dit_jax.data import shapes
from dit_jax.experiment import Experiment
from dit_jax.jobs.sample import sample
from dit_jax.jobs.train import train
from dit_jax.jobs.train_autoencoder import train_autoencoder
from dit_jax.jobs.train_classifier import train_classifier
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from tests import process, tiny

STEPS, EVERY = 80, 20
SETTINGS = [f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.log_every=2"]
LOST = (-signal.SIGABRT, 134)  # the same to a shell: JAX's abort of a process that lost its peer, and our exit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns (data_dir with 64 training images, folder for compiled programs)."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_EXAMPLES", {"train": 64, "test": 10})
        shapes.prepare(folder / "data")
    return folder / "data", folder / "cache"


def train_here(data_dir, workdir, devices, *settings):
    """Trains the same model in this process, on the given number of devices."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.on_devices(patch, devices)
        assert train(config_of(data_dir, *settings), workdir, None) == 0


def config_of(data_dir, *settings):
    config = configs.load("configs/shapes.py")
    configs.override(config, [*process.SMALL, f"data.data_dir={data_dir}", *settings])
    return resolve(config)


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    """The workdir of a run of one process on four devices."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train_here(place[0], workdir, 4, *SETTINGS)
    return workdir


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(workdir, undisturbed):
    """Compares to float tolerance, as gradients are summed in another order: losses to 1e-5.

    The weights are compared by their predictions: the biases of the keys change no output, so their gradients are
    rounding errors alone, which AdamW magnifies.
    """
    rows, expected = rows_of(workdir), rows_of(undisturbed)
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))  # none lost or repeated
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in expected], rtol=1e-5)
    experiment = Experiment(resolve(configs.read(undisturbed)))
    x, t, labels = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32), np.arange(4), np.arange(4)
    ends = [process.final_state(run) for run in (workdir, undisturbed)]
    for weights in ("params", "ema_params"):
        predictions = [experiment.apply(getattr(end, weights), x, t, labels) for end in ends]
        np.testing.assert_allclose(*predictions, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_ended_killed_and_resumed_by_one_process_it_is_the_same_run(place, undisturbed, tmp_path):
    none_due = f"train.checkpoint_every={10**6}"
    pair = process.start_pair(place[0], tmp_path, place[1], *SETTINGS, none_due, slurm=True)
    process.wait_for(lambda: process.last_row(tmp_path) >= 6, pair[0])
    pair[1].send_signal(signal.SIGTERM)  # to one process only, and not to the one that writes
    (code, told), (code_1, told_1) = map(process.finish, pair)
    assert (code, code_1) == (143, 143), (told, told_1)
    (saved,) = process.checkpoints(tmp_path)
    assert "another process was asked to end: saving" in told
    assert told[-1] == f"saved step {saved} of {STEPS} in {tmp_path}; the same command resumes the run"
    assert not [line for line in told_1 if "step" in line]  # only the first process logs progress

    pair = process.start_pair(place[0], tmp_path, place[1], *SETTINGS)
    process.wait_for(lambda: max(process.checkpoints(tmp_path)) > saved, pair[0])
    process.kill(pair[0])
    code, told = process.finish(pair[1])  # ends by itself
    assert code in LOST, told
    assert max(process.checkpoints(tmp_path)) < STEPS, "the run was over before its kill: give it more steps"

    train_here(place[0], tmp_path, 2, *SETTINGS)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.long
def test_an_error_of_one_process_is_told_once_and_ends_both(place, tmp_path):
    """A limit on file sizes, for the first process only, stands in for a full disk."""
    from tests.test_faults import limit_files

    settings = [*SETTINGS, "train.steps=100000", "train.checkpoint_every=4"]
    start = time.monotonic()
    pair = process.start_pair(place[0], tmp_path, place[1], *settings, first={"preexec_fn": limit_files})
    (code, told), (code_1, told_1) = map(process.finish, pair)
    assert (code, code_1) == (2, 2), (told, told_1)
    errors = [line for line in told + told_1 if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot be written (File too large): fix that" in errors[0]
    assert not any("Traceback" in line for line in told + told_1), (told, told_1)
    assert time.monotonic() - start < 300  # it takes about 20 s


@pytest.mark.long
def test_a_process_with_another_config_or_other_data_is_told_once(place, tmp_path):
    """The processes may have different data folders, but not different data. Nothing is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_EXAMPLES", {"train": 60, "test": 10})
        shapes.prepare(tmp_path / "other")
    for flag, what in (("train.log_every=4", "config"), (f"data.data_dir={tmp_path / 'other'}", "data")):
        workdir = tmp_path / what
        pair = process.start_pair(place[0], workdir, place[1], *SETTINGS, second=[f"--config.{flag}"])
        (code, told), (code_1, told_1) = map(process.finish, pair)
        assert (code, code_1) == (2, 2), (told, told_1)
        (line,) = [line for line in told + told_1 if "error" in line]
        assert line.startswith(f"error: the 2 processes do not have the same {what}; ")
        assert not workdir.exists()


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_processes_with_other_given_images_are_told(mode, place, undisturbed, tmp_path):
    """As many images in a file of the same name on another machine."""
    workdir, images = shutil.copytree(undisturbed, tmp_path / "w"), np.zeros((12, 32, 32, 3), np.uint8)
    files = [tmp_path / "0.npz", tmp_path / "1.npz"]
    for i, file in enumerate(files):
        np.savez(file, images=images + 9 * i)
    settings, flags = [*SETTINGS, "sample.steps=2", "sample.n=12"], [f"--mode={mode}"]
    if mode == "sample":
        settings += ["sample.task=image_to_image", f"sample.images={files[0]}"]
        second = [f"--config.sample.images={files[1]}"]
    else:
        settings += ["evaluate.features=classifier", "classifier.steps=2", "classifier.width=8"]
        train_classifier(config_of(place[0], *settings), workdir, None)
        flags, second = [*flags, f"--images={files[0]}"], [f"--images={files[1]}"]
    pair = process.start_pair(place[0], workdir, place[1], *settings, flags=flags, second=second)
    (code, told), (code_1, told_1) = map(process.finish, pair)
    assert (code, code_1) == (2, 2), (told, told_1)
    (line,) = [line for line in told + told_1 if line.startswith("error")]
    what = "given images, labels or mask" if mode == "sample" else "images"
    assert line == f"error: the 2 processes do not have the same {what}; each must read the same pictures"
    assert not (workdir / "samples").exists()
    assert not (workdir / "evaluation_images.json").exists()


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(place, undisturbed, tmp_path):
    drawing = ["sample.n=5", "sample.batch_size=3", "sample.steps=3"]
    pair = process.start_pair(
        place[0], undisturbed, place[1], *SETTINGS, *drawing, flags=["--mode=sample", f"--out={tmp_path / 'pair'}"]
    )
    (code, told), (code_1, told_1) = map(process.finish, pair)
    assert (code, code_1) == (0, 0), (told, told_1)
    sample(config_of(place[0], *SETTINGS, *drawing), undisturbed, tmp_path / "here")
    images = [np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("pair", "here")]
    assert images[0].shape == (5, 32, 32, 3)
    assert np.abs(images[0] - images[1]).max() <= 1
    names = ["denoising.gif", "denoising.png", "grid.png", "samples.npz"]
    assert sorted(path.name for path in (tmp_path / "pair").iterdir()) == names


@pytest.mark.slow
def test_two_processes_split_the_state_stream_and_draw(place, tmp_path):
    """A sharded state, streamed data and grids of samples, in one run."""
    settings = [*SETTINGS, "train.shard_params=true", "data.resident=false", "train.sample_every=40", "sample.steps=3"]
    for code, told in map(process.finish, process.start_pair(place[0], tmp_path / "pair", place[1], *settings)):
        assert code == 0, told
    train_here(place[0], tmp_path / "here", 4, *settings)
    assert_same_run(tmp_path / "pair", tmp_path / "here")


@pytest.mark.slow
def test_kills_of_a_pair_cost_no_bit(place, tmp_path):
    """The reference has the same devices in as many processes, so the result is bitwise the same."""
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    for code, told in map(process.finish, process.start_pair(place[0], whole, place[1], *SETTINGS)):
        assert code == 0, told
    for victim in (0, 0, 0):
        had = process.checkpoints(workdir)
        pair = process.start_pair(place[0], workdir, place[1], *SETTINGS)
        process.wait_for(lambda: process.checkpoints(workdir) != had, pair[0])  # noqa: B023
        process.kill(pair[victim])
        code, told = process.finish(pair[1 - victim])
        assert code in LOST, told
    for code, told in map(process.finish, process.start_pair(place[0], workdir, place[1], *SETTINGS)):
        assert code == 0, told
    jax.tree.map(np.testing.assert_array_equal, process.final_state(workdir), process.final_state(whole))
    without = lambda rows: [{**row, "images_per_s": 0} for row in rows]  # noqa: E731
    assert without(rows_of(workdir)) == without(rows_of(whole))


@pytest.mark.slow
def test_the_first_process_ends_when_another_is_lost(place, tmp_path):
    """It learns of the loss only from the other's silence: JAX waits 100 seconds."""
    pair = process.start_pair(place[0], tmp_path, place[1], *SETTINGS, "train.steps=1000000")
    process.wait_for(lambda: process.last_row(tmp_path) >= 6, pair[0])
    process.kill(pair[1])
    start = time.monotonic()
    code, told = process.finish(pair[0])
    assert code in LOST, told
    assert time.monotonic() - start < 200


@pytest.mark.slow
def test_two_processes_train_a_classifier_and_evaluate(place, undisturbed):
    settings = ["classifier.steps=4", "classifier.width=8", "classifier.batch_size=8", "evaluate.n=20",
                "sample.steps=3", "sample.batch_size=10"]  # fmt: skip
    for mode in ("train_classifier", "evaluate"):
        guided = ["sample.classifier_scale=1"] if mode == "evaluate" else []
        words = *SETTINGS, *settings, *guided
        pair = process.start_pair(place[0], undisturbed, place[1], *words, flags=[f"--mode={mode}"])
        for code, told in map(process.finish, pair):
            assert code == 0, told
    found = json.loads((undisturbed / "evaluation.json").read_text())
    assert found["n"] == 20
    assert len((undisturbed / "evaluations.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_processes_evaluate_while_they_train(place, undisturbed, tmp_path):
    """The training is the same as without evaluations."""
    settings = [*SETTINGS, "classifier.steps=4", "classifier.width=8", "classifier.batch_size=8"]
    settings += ["evaluate.every_steps=40", "evaluate.training_n=20", "evaluate.training_steps=3"]
    for mode in ("train_classifier", "train"):
        pair = process.start_pair(place[0], tmp_path, place[1], *settings, flags=[f"--mode={mode}"])
        for code, told in map(process.finish, pair):
            assert code == 0, told
    found = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["n"]) for row in found] == [(40, 20), (80, 20)]
    assert all(np.isfinite(row["fd_classifier"]) for row in found)
    assert_same_run(tmp_path, undisturbed)


LATENTS = ["model.latents=true", "model.patch_size=2", "autoencoder.width=4", "autoencoder.steps=4", "train.steps=8",
           "autoencoder.batch_size=8", "train.log_every=2", "train.checkpoint_every=4"]  # fmt: skip


@pytest.mark.slow
def test_an_autoencoder_and_a_run_on_its_latents_are_those_of_one_process(place, tmp_path):
    """The second process has its own folder for the data, and so for the latents."""
    data_dir, alone, both = tmp_path / "data", tmp_path / "alone", tmp_path / "both"
    others = shutil.copytree(place[0], tmp_path / "others")
    shutil.copytree(place[0], data_dir)
    for mode in ("train_autoencoder", "train"):
        flags, second = [f"--mode={mode}"], [f"--config.data.data_dir={others}"]
        ended = map(process.finish, process.start_pair(data_dir, both, place[1], *LATENTS, flags=flags, second=second))
        for code, told in ended:
            assert code == 0, told
    assert [len(list((folder / "latents").glob("*/*.array_record"))) for folder in (data_dir, others)] == [1, 1]
    with pytest.MonkeyPatch.context() as patch:
        tiny.on_devices(patch, 4)
        assert train_autoencoder(config_of(place[0], *LATENTS), alone, None) == 0
    train_here(place[0], alone, 4, *LATENTS)
    rows, expected = rows_of(both), rows_of(alone)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in expected], rtol=1e-4)
