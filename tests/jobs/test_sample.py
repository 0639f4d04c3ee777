"""What `sample.task` draws from a run whose weights are as large as trained ones, on one device and on eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.diffusion import tasks
from dit_jax.errors import UserError
from dit_jax.jobs import evaluate
from dit_jax.jobs.sample import Task, draw_all, grid, picture_denoising, psnr, sample
from dit_jax.loading import Run, load
from dit_jax.reporting.images import to_uint8
from tests import tiny
from tests.test_experiment import weights

pytestmark = pytest.mark.medium

DDIM = {"sample__sampler": "ddim", "sample__steps": 20, "sample__clip_x_0": False}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, 1)
        experiment = tiny.experiment(train__steps=4)
        return tiny.with_weights(tmp_path_factory.mktemp("draw"), experiment, weights(experiment))


@pytest.fixture(params=[1, 8])
def sampled(request, workdir, tmp_path, monkeypatch):
    """Returns sampled(**config), which runs the job and returns the arrays of its samples.npz."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, request.param)

    def run(**more):
        sample(tiny.config(train__steps=4, **more), workdir, tmp_path / "out")
        with np.load(tmp_path / "out" / "samples.npz") as file:
            return dict(file)

    return run


@pytest.fixture
def given(tmp_path):
    """Five images of the data set, as a file, with labels other than 0."""
    images, labels = tiny.split().images[:5], np.array([2, 1, 2, 1, 1])
    np.savez(tmp_path / "given.npz", images=images, labels=labels)
    return {"sample__images": tmp_path / "given.npz"}, images, labels


def near(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_interpolation_starts_and_ends_at_images_of_their_own_noise(sampled, workdir):
    drawn = sampled(sample__task="interpolate", sample__n=6, sample__labels="2,0", **DDIM)
    assert drawn["labels"].tolist() == [2, 2, 2, 0, 0, 0]
    run = load(workdir, tiny.config(train__steps=4, **DDIM))
    for row, label in enumerate((2, 0)):
        plain = run.sample(run.ema_params, jax.random.key(0), [label, label], 2 * row)
        ends = to_uint8(np.asarray(plain))
        assert near(drawn["images"][[3 * row, 3 * row + 2]], ends)
        assert not near(drawn["images"][3 * row + 1], ends[0])


def test_the_grid_of_an_interpolation_has_a_row_for_each_label_asked_for_as_often_as_it_was():
    images = np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    row_of = np.repeat([0, 1, 2], 8)
    task = Task(np.repeat([1, 0, 1], 8), lambda: None, row_of=row_of)
    picture = grid(images, task, ("cat", "dog"))
    heights = [np.flatnonzero((picture == image[0, 0, 0]).all(2).sum(1) >= 8)[0] for image in images]
    assert heights[0] < heights[8] < heights[16]
    assert all(heights[i] == heights[8 * (i // 8)] for i in range(24))


def test_images_without_labels_are_said_to_be_taken_for_all_classes_in_turn(sampled, given, tmp_path, caplog):
    flags, images, _ = given
    np.savez(tmp_path / "bare.npz", images=images)
    flags = flags | {"sample__images": tmp_path / "bare.npz", "sample__task": "image_to_image"}
    drawn = sampled(sample__strength=0.1, **flags, **DDIM)
    assert drawn["labels"].tolist() == [0, 1, 2, 0, 1]
    assert "has no labels, so all classes are used in turn; set sample.labels to those of the images" in caplog.text
    caplog.clear()
    assert sampled(sample__strength=0.1, sample__labels="2", **flags, **DDIM)["labels"].tolist() == [2] * 5
    assert "no labels" not in caplog.text


def test_inversion_comes_back_by_the_labels_of_the_images(sampled, given, workdir):
    """And by no other labels: if the noise is drawn as another class, the error is at least twice as large."""
    flags, images, labels = given
    drawn = sampled(sample__task="invert", **flags, **DDIM)
    run = load(workdir, tiny.config(train__steps=4, **DDIM))
    for shift in (1, 2):
        others = draw_all(run, Task((labels + shift) % 3, run.task(tasks.from_noise), (drawn["noise"],)))
        assert psnr(drawn["images"], images) > psnr(others, images) + 6
    assert drawn["labels"].tolist() == labels.tolist()
    assert drawn["noise"].shape == images.shape
    assert drawn["noise"].dtype == np.float32


def test_image_to_image_keeps_to_the_image_or_forgets_it(sampled, given):
    """The last of 20 steps starts from sigma[0] = 0.01; all of them start from noise alone."""
    flags, images, _ = given
    task = {"sample__task": "image_to_image", "sample__labels": "1", **flags, **DDIM}
    drawn = sampled(sample__strength=0.01, **task)
    assert drawn["labels"].tolist() == [1] * 5
    assert psnr(drawn["images"], images) > 25
    plain = sampled(sample__n=5, sample__labels="1", **DDIM)
    assert near(sampled(sample__strength=1.0, **task)["images"], plain["images"])


def test_inpainting_draws_where_the_mask_is_white_alone(sampled, given, tmp_path):
    flags, images, _ = given
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = sampled(sample__task="inpaint", sample__mask=tmp_path / "mask.png", sample__n=4, **flags)["images"]
    assert drawn.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(drawn[:, mask == 0], images[:4][:, mask == 0])
    assert (drawn[:, mask > 0] != images[:4][:, mask > 0]).any(axis=(1, 2)).all()


def test_the_denoising_is_pictured_unless_told_otherwise(sampled, tmp_path):
    sampled(sample__denoising=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "samples.npz"]
    sampled()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "denoising.gif",
        "denoising.png",
        "grid.png",
        "samples.npz",
    ]
    sampled(sample__task="interpolate")  # its denoising is not pictured, and that of earlier samples is removed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "samples.npz"]


def test_the_weights_that_were_asked_for_draw_everything(tmp_path, monkeypatch):
    """Samples, the pictures of their denoising and an evaluation's images: all with `run.weights`."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    seen = []

    def draw(params, key, labels, first=0, inputs=()):
        seen.append(params)
        return jnp.zeros((len(labels), 8, 8, 3))

    def watch(params, key, labels):
        seen.append(params)
        return jnp.zeros((len(labels), 2, 4, 8, 8, 3))  # three steps, and the image

    run = Run(tiny.experiment(), 6, "averaged", draw, "raw")
    monkeypatch.setattr(Run, "task", lambda self, of: watch)
    labels = np.arange(3)
    draw_all(run, Task(labels, run.sample))
    picture_denoising(run, labels, tmp_path, {})
    evaluate.draw(run, labels, 0)
    assert seen == ["raw"] * 3


def test_psnr_by_hand():
    """An error of 51 everywhere: 20 log10(255 / 51) = 20 log10(5) = 13.979 dB."""
    black = np.zeros((2, 3, 3, 1), np.uint8)
    assert psnr(black + 51, black) == pytest.approx(13.979, abs=1e-3)
    assert psnr(black, black) == np.inf


def test_images_that_have_diverged_are_told(sampled, caplog):
    drawn = sampled(sample__guidance=3e38, sample__clip_x_0=False)
    lost = re.search(r"(\d) of 7 images have diverged", caplog.text)
    assert lost
    assert drawn["images"].shape == (7, 8, 8, 3)


def test_an_inversion_that_has_diverged_is_told_without_a_word_on_guidance(sampled, given, caplog, monkeypatch):
    monkeypatch.setattr("dit_jax.reporting.images.DIVERGED", 0.0)
    sampled(sample__task="invert", **given[0], **DDIM)
    told = [record.getMessage() for record in caplog.records if "have diverged" in record.getMessage()]
    assert [line.split(" have ")[0] for line in told] == ["5 of 5 noises", "5 of 5 images"]
    assert all(line.endswith("use sample.spacing=trailing and more sample.steps, or train longer") for line in told)


def test_a_folder_where_a_file_belongs_is_told(sampled, tmp_path):
    (tmp_path / "out/samples.npz").mkdir(parents=True)
    with pytest.raises(UserError, match=r"samples.npz is a folder, but must be a file; move it elsewhere"):
        sampled()
