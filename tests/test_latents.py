"""Latent diffusion through the jobs: an autoencoder is trained, then a run on its latents, which gives images."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from dit_jax import config as configs
from dit_jax import draw, evaluate_job, jobs
from dit_jax.autoencoder_experiment import AutoencoderExperiment, autoencoder_config, with_codec
from dit_jax.autoencoder_job import train_autoencoder
from dit_jax.data import datasets
from dit_jax.diffusion import tasks
from dit_jax.errors import UserError
from dit_jax.experiment import make_sample
from dit_jax.loading import load
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.step import zero_sums
from tests import tiny

LATENTS = {"model__latents": True, "model__patch_size": 2, "sample__clip_x_0": False, "train__steps": 4}
SHAPE = (4, 4, 2)  # of the latents of a tiny image
DDIM = {"sample__sampler": "ddim", "sample__steps": 20}


def config(**more):
    return tiny.config(**(LATENTS | more))


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    tiny.install(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with an autoencoder of two steps and a run of four, on one device."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, 1)
        assert train_autoencoder(config(), folder, None) == 0
        assert jobs.train(config(), folder, None) == 0
    return folder


@pytest.fixture(params=[1, 8])
def sampled(request, trained, tmp_path, monkeypatch):
    """sampled(**config) runs the job and gives the arrays of its samples.npz."""
    tiny.on_devices(monkeypatch, request.param)

    def run(**more):
        draw.sample(config(**more), trained, tmp_path / "out")
        with np.load(tmp_path / "out" / "samples.npz") as file:
            return dict(file)

    return run


@pytest.fixture
def given(tmp_path):
    images, labels = (array[:5] for array in tiny.split())
    np.savez(tmp_path / "given.npz", images=images, labels=labels)
    return {"sample__images": tmp_path / "given.npz"}, images


def copy_of(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def weights_of(folder):
    """The autoencoder's experiment and averaged weights."""
    experiment = AutoencoderExperiment(autoencoder_config(config()))
    with Checkpointer(folder / "autoencoder", keep=1, read_only=True) as checkpointer:
        state = checkpointer.restore(experiment.abstract_state())
    return experiment, jax.tree.map(np.asarray, state.ema_params)


def test_what_is_measured_of_an_autoencoder(trained):
    about = json.loads((trained / "autoencoder/latents.json").read_text())
    experiment, params = weights_of(trained)
    images = tiny.split().images
    x = images.astype(np.float64) / 127.5 - 1
    means = np.asarray(experiment.model.apply(params, x.astype(np.float32), method="moments")[0], np.float64)
    np.testing.assert_allclose(about["mean"], means.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(about["std"], means.std((0, 1, 2)), rtol=1e-4)
    decoded = np.asarray(experiment.model.apply(params, means.astype(np.float32), method="decode"))
    error = np.round((np.clip(decoded, -1, 1) + 1) * 127.5) - images
    assert about["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.01)
    assert (about["images"], about["psnr_n"], about["psnr_split"]) == (tiny.NUM_EXAMPLES, tiny.NUM_EXAMPLES, "test")
    with Image.open(trained / "autoencoder/reconstructions.png") as picture:
        assert picture.size[0] > 10 * 16


def test_latents_have_mean_0_and_deviation_1(trained):
    codec = with_codec(trained, config()).codec
    latents = np.asarray(codec.encode(codec.weights, draw.to_float(tiny.split().images)))
    assert latents.shape == (tiny.NUM_EXAMPLES, *SHAPE)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-4)


def test_the_run_diffuses_latents_and_gives_images(trained):
    run = load(trained)
    assert run.experiment.x_shape == SHAPE
    assert run.ema_params["params"]["patch"]["kernel"].shape[0] == 2 * 2 * 2  # patches of 2, of 2 channels
    key, labels = jax.random.key(3), [0, 1, 2]
    images = run.sample(run.ema_params, key, labels)
    plan = run.experiment.plan(run.experiment.timesteps())
    latents = make_sample(run.experiment, plan, decode=False)(run.ema_params, key, labels)
    assert latents.shape == (3, *SHAPE)
    codec = run.experiment.codec
    np.testing.assert_allclose(images, codec.decode(codec.weights, latents), atol=1e-5)
    watched = np.array([0, 2])
    frames = np.asarray(run.task(tasks.denoising(watched))(run.ema_params, key, labels))
    assert frames.shape == (3, 2, len(watched) + 1, 8, 8, 3)
    np.testing.assert_allclose(frames[:, 1, -1], images, atol=1e-5)


def test_the_loss_is_of_latents(trained):
    """A fresh network says 0, so it loses the mean square of what it should say: x_0, the latents of a batch."""
    experiment = with_codec(trained, config(diffusion__prediction="x0"))
    straight = draw.to_float(tiny.split().images)
    encode = partial(experiment.codec.encode, experiment.codec.weights)
    squares = [np.square(encode(x)).mean((1, 2, 3)) for x in (straight, straight[:, :, ::-1])]
    call, state, *data = tiny.start(experiment)
    _, sums, _ = call(state, zero_sums(), *data, np.int32(1), experiment.codec.weights)
    least, most = np.sort(np.minimum(*squares))[:8].mean(), np.sort(np.maximum(*squares))[-8:].mean()
    assert least - 1e-4 <= float(sums["loss"]) <= most + 1e-4


@pytest.mark.long
def test_the_same_losses_on_one_device_and_on_eight(trained, tmp_path, monkeypatch):
    tiny.on_devices(monkeypatch, 8)
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    jobs.train(config(), tmp_path, None)
    rows = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (trained, tmp_path)
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4)


def test_samples_and_their_pictures(sampled, tmp_path):
    drawn = sampled()
    assert drawn["images"].shape == (7, 8, 8, 3)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["denoising.gif", "denoising.png", "grid.png", "samples.npz"]


@pytest.mark.long
def test_tasks_that_start_from_images(sampled, given, trained, tmp_path):
    flags, images = given
    codec = with_codec(trained, config()).codec
    through = draw.to_uint8(np.asarray(codec.decode(codec.weights, codec.encode(codec.weights, draw.to_float(images)))))
    drawn = sampled(sample__task="invert", **flags, **DDIM)
    assert drawn["noise"].shape == (5, *SHAPE)
    assert draw.psnr(drawn["images"], through) > 30  # a hardly trained network says no noise: each step its own inverse
    drawn = sampled(sample__task="image_to_image", sample__strength=0.01, **flags, **DDIM)
    assert draw.psnr(drawn["images"], through) > 25
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = sampled(sample__task="inpaint", sample__mask=tmp_path / "mask.png", sample__n=4, **flags)["images"]
    np.testing.assert_array_equal(drawn[:, mask == 0], images[:4][:, mask == 0])
    assert (drawn[:, mask > 0] != images[:4][:, mask > 0]).any(axis=(1, 2)).all()


@pytest.mark.long
def test_interpolation_is_between_noises_of_latents(sampled):
    drawn = sampled(sample__task="interpolate", sample__n=6, sample__labels="2,0", **DDIM)
    assert drawn["images"].shape == (6, 8, 8, 3)


def test_held_out_latents_have_losses_and_no_bound(trained):
    run = load(trained, config())
    figures = evaluate_job.held_out_figures(run, datasets.open_split(run.experiment.source, "test"))
    assert set(figures) == {"loss_by_noise"}
    # Of noise predicted as 0 (a hardly trained network) the error is the noise's own square: near 1 for any latents.
    assert np.mean(figures["loss_by_noise"]["loss"]) == pytest.approx(1, abs=0.5)


def refused(capfd, *arguments):
    done = tiny.run_main(capfd, *arguments)
    assert done.code == 2
    assert len(done.err) == 1
    return done.err[0]


def test_no_autoencoder_no_latents(tmp_path, capfd):
    line = refused(capfd, "--workdir", tmp_path / "w", *tiny.flags(**LATENTS))
    assert "has no trained autoencoder; first run python main.py --mode=train_autoencoder" in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sample__clip_x_0": True}, "sample.clip_x_0=True: latents (model.latents=true) do not end at -1 and 1"),
        ({"sample__classifier_scale": 1.0}, "the classifier knows noisy images, not noisy latents"),
        ({"autoencoder__downsample": 3}, "autoencoder.downsample=3: use one of (2, 4, 8)"),
        ({"autoencoder__width": 6}, "autoencoder.width=6: use a multiple of 4"),
        ({"autoencoder__width": 144}, "autoencoder.width=144: use a multiple of 4, above 128 of 32"),
        ({"model__patch_size": 8}, "model.patch_size=8: it must divide the latents, 4 x 4; use one of [1, 2, 4]"),
        ({"autoencoder__kl_weight": -1.0}, "autoencoder.kl_weight=-1.0: use 0"),
        ({"autoencoder__channels": 0}, "autoencoder.channels=0: use a whole number of at least 1"),
        ({"autoencoder__learning_rate": 0.0}, "autoencoder.learning_rate=0.0: use a number above 0"),
    ],
)
def test_what_cannot_be(more, words):
    with pytest.raises(UserError) as error:
        config(**more)
    assert words in str(error.value)


def test_another_autoencoder_is_refused(trained, tmp_path, capfd):
    """And so is training the one that the run has learnt with on."""
    copy = copy_of(trained, tmp_path)
    line = refused(capfd, "--mode=train_autoencoder", "--workdir", copy, "--config.autoencoder.steps=4")
    assert "the run in" in line
    assert "has learnt the latents of step 2; use another workdir" in line
    line = refused(capfd, "--mode=sample", "--workdir", copy, "--config.autoencoder.channels=3")
    assert "autoencoder.channels=3" in line
    assert "has 2; use that" in line
    learnt = configs.read(copy)
    learnt.autoencoder.sha256 = "0" * 64
    configs.write(learnt, copy)
    line = refused(capfd, "--mode=sample", "--workdir", copy)
    assert "put that autoencoder back" in line


@pytest.mark.long
def test_the_same_commands_again_change_nothing(trained, tmp_path, capfd):
    copy = copy_of(trained, tmp_path)
    before = tiny.snapshot(copy / "checkpoints")
    sha256 = configs.read(copy).autoencoder.sha256
    assert len(sha256) == 64
    for mode in ("train_autoencoder", "train"):
        assert tiny.run_main(capfd, f"--mode={mode}", "--workdir", copy, *tiny.flags(**LATENTS)).code == 0
    assert tiny.snapshot(copy / "checkpoints") == before
    assert configs.read(copy).autoencoder.sha256 == sha256


def test_an_unfinished_or_unmeasured_autoencoder_is_told(trained, tmp_path, capfd):
    copy = copy_of(trained, tmp_path)
    shutil.rmtree(copy / "checkpoints")
    (copy / "autoencoder/latents.json").write_text("{")
    line = refused(capfd, "--workdir", copy, *tiny.flags(**LATENTS))
    assert "is not trained to its end; first run" in line
    assert tiny.run_main(capfd, "--mode=train_autoencoder", "--workdir", copy).code == 0
    assert json.loads((copy / "autoencoder/latents.json").read_text())["step"] == 2
