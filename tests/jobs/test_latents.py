"""Latent diffusion through the jobs: an autoencoder is trained, then a run on its latents, which gives images."""

import dataclasses
import json
import shutil
import signal
import time
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dit_jax.companions.autoencoder import AutoencoderExperiment, autoencoder_config, with_codec
from dit_jax.data import datasets
from dit_jax.data.pipeline import to_float
from dit_jax.diffusion import tasks
from dit_jax.errors import EndedError, UserError, explain
from dit_jax.experiment import Experiment, make_sample
from dit_jax.jobs import latents
from dit_jax.jobs.evaluate import held_out_figures
from dit_jax.jobs.latents import training_records
from dit_jax.jobs.sample import Task, draw_all, inpaint, psnr, sample
from dit_jax.jobs.train import train
from dit_jax.jobs.train_autoencoder import train_autoencoder
from dit_jax.loading import load
from dit_jax.models.autoencoder import Codec
from dit_jax.reporting.images import to_uint8
from dit_jax.settings import configs
from dit_jax.system import together
from dit_jax.system.lock import only_trainer
from dit_jax.system.stop import Stop
from dit_jax.training.checkpoint import Checkpointer
from tests import tiny
from tests.test_experiment import weights

LATENTS = {"model__latents": True, "model__patch_size": 2, "sample__clip_x_0": False, "train__steps": 4}
SHAPE = (4, 4, 2)  # of the latents of a tiny image
DDIM = {"sample__sampler": "ddim", "sample__steps": 20}


def config(**more):
    return tiny.config(**(LATENTS | more))


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    """The folder where latents are kept."""
    LATENTS["data__data_dir"] = tmp_path_factory.mktemp("data")
    return LATENTS["data__data_dir"]


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
        assert train(config(), folder, None) == 0
    return folder


@pytest.fixture(scope="module")
def loud(trained, tmp_path_factory):
    """A workdir with that autoencoder and a run on its latents, whose weights are as large as trained ones."""
    folder = tmp_path_factory.mktemp("loud")
    shutil.copytree(trained / "autoencoder", folder / "autoencoder")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, 1)
        experiment = with_codec(folder, config())
        return tiny.with_weights(folder, experiment, weights(experiment))


@pytest.fixture(params=[1, 8])
def sampled(request, loud, tmp_path, monkeypatch):
    """Returns sampled(**config), which runs the job and returns the arrays of its samples.npz."""
    tiny.on_devices(monkeypatch, request.param)

    def run(**more):
        sample(config(**more), loud, tmp_path / "out")
        with np.load(tmp_path / "out" / "samples.npz") as file:
            return dict(file)

    return run


@pytest.fixture
def given(tmp_path):
    images, labels = tiny.split().images[:5], np.array([2, 1, 2, 1, 1])
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


@pytest.mark.long
def test_what_is_measured_of_an_autoencoder(trained):
    about = json.loads((trained / "autoencoder/latents.json").read_text())
    experiment, params = weights_of(trained)
    images = {name: tiny.split(name).images for name in ("train", "test")}
    latents = {
        name: np.asarray(experiment.model.apply(params, to_float(split), method="moments")[0])
        for name, split in images.items()
    }
    np.testing.assert_allclose(about["mean"], latents["train"].mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(about["std"], latents["train"].std((0, 1, 2)), rtol=1e-4)
    decoded = np.asarray(experiment.model.apply(params, latents["test"], method="decode"))
    error = np.round((np.clip(decoded, -1, 1) + 1) * 127.5) - images["test"]
    assert about["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.01)
    assert (about["images"], about["psnr_n"], about["psnr_split"]) == (40, 24, "test")
    with Image.open(trained / "autoencoder/reconstructions.png") as picture:
        assert picture.size[0] > 10 * 16


@pytest.mark.long
def test_latents_have_mean_0_and_deviation_1(trained):
    codec = with_codec(trained, config()).codec
    latents = np.asarray(codec.encode(codec.weights, to_float(tiny.split().images)))
    assert latents.shape == (40, *SHAPE)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-4)


@pytest.mark.long
def test_the_run_diffuses_latents_and_gives_images(trained):
    run = load(trained)
    assert run.experiment.x_shape == SHAPE
    assert run.ema_params["params"]["patch"]["kernel"].shape[0] == 2 * 2 * 2  # patches of 2, of 2 channels
    key, labels = jax.random.key(3), [0, 1, 2]
    images = run.sample(run.ema_params, key, labels)
    plan = run.experiment.plan()
    latents = make_sample(run.experiment, plan, decode=False)(run.ema_params, key, labels)
    assert latents.shape == (3, *SHAPE)
    codec = run.experiment.codec
    np.testing.assert_allclose(images, codec.decode(codec.weights, latents), atol=1e-5)
    watched = np.array([0, 2])
    frames = np.asarray(run.task(tasks.denoising(watched))(run.ema_params, key, labels))
    assert frames.shape == (3, 2, len(watched) + 1, 8, 8, 3)
    np.testing.assert_allclose(frames[:, 1, -1], images, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_kept_are_the_latents_of_images_and_of_mirrored_ones(devices, trained, tmp_path, monkeypatch):
    tiny.on_devices(monkeypatch, devices)
    experiment = with_codec(trained, config(data__data_dir=tmp_path))
    records = training_records(experiment, tiny.records(), ["these"], Stop())
    straight = to_float(tiny.split().images)
    encode = partial(experiment.codec.encode, experiment.codec.weights)
    expected = np.stack([encode(straight), encode(straight[:, :, ::-1])], 1)
    np.testing.assert_allclose(records.load().images, expected, atol=1e-5)
    np.testing.assert_array_equal(records.labels(), tiny.split().labels)
    unflipped = with_codec(trained, config(data__data_dir=tmp_path, data__flip=False))
    records = training_records(unflipped, tiny.records(), ["these"], Stop())
    np.testing.assert_allclose(records.load().images, expected[:, 0], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("flip", [True, False])
def test_the_loss_is_of_latents(flip, trained, tmp_path, monkeypatch):
    """A fresh network predicts 0, so its loss is the mean square of its target: x_0, the latents of a batch."""
    tiny.on_devices(monkeypatch, 1)
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    made = config(diffusion__prediction="x0", train__steps=1, data__flip=flip)
    codec = with_codec(trained, made).codec
    train(made, tmp_path, None)
    loss = json.loads((tmp_path / "metrics.jsonl").read_text())["loss"]
    straight = to_float(tiny.split().images)
    views = [straight, straight[:, :, ::-1]] if flip else [straight, straight]
    squares = [np.square(codec.encode(codec.weights, x)).mean((1, 2, 3)) for x in views]
    least, most = np.sort(np.minimum(*squares))[:8].mean(), np.sort(np.maximum(*squares))[-8:].mean()
    assert least - 1e-4 <= loss <= most + 1e-4


def encodings(monkeypatch):
    """Returns a list that collects the names of the folders that are encoded to from here on."""
    folders, real = [], latents.encode_to
    monkeypatch.setattr(latents, "encode_to", lambda folder, *rest: folders.append(folder.name) or real(folder, *rest))
    return folders


@pytest.mark.long
def test_latents_are_encoded_once_for_all_runs_with_this_autoencoder_and_data(trained, tmp_path, monkeypatch):
    folders = encodings(monkeypatch)
    records = tiny.records()

    def ask(of=trained, probe="these", count=40, **more):
        before = len(folders)
        asked = with_codec(of, config(data__data_dir=tmp_path / "data", **more))
        training_records(asked, records.first(count), [probe], Stop())
        return len(folders) - before

    assert ask() == 1
    assert ask(train__steps=8, seed=3, model__patch_size=4) == 0
    assert ask(data__flip=False) == 1
    assert ask(probe="others") == 1
    copy = shutil.copytree(trained / "autoencoder", tmp_path / "w" / "autoencoder").parent
    assert ask(copy) == 0
    about = json.loads((copy / "autoencoder/latents.json").read_text())
    about["mean"][0] += 0.5
    (copy / "autoencoder/latents.json").write_text(json.dumps(about))
    assert ask(copy) == 1
    assert len(set(folders)) == 4
    assert sorted(path.name for path in (tmp_path / "data/latents").iterdir()) == sorted(folders)


@pytest.mark.long
def test_a_run_goes_on_to_the_same_weights_with_latents_that_were_deleted(trained, tmp_path, monkeypatch):
    tiny.on_devices(monkeypatch, 1)
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    folders, data = encodings(monkeypatch), tmp_path / "data"
    train(config(data__data_dir=data, train__steps=2), tmp_path, None)
    shutil.rmtree(data)
    train(config(data__data_dir=data), tmp_path, None)
    assert len(folders) == 2
    for one, other in zip(jax.tree.leaves(load(tmp_path).weights), jax.tree.leaves(load(trained).weights), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_nothing_is_encoded_for_a_run_that_has_done_or_is_another_trainers(trained, tmp_path, monkeypatch):
    copy, folders = copy_of(trained, tmp_path), encodings(monkeypatch)
    elsewhere = config(data__data_dir=tmp_path / "data")
    assert train(elsewhere, copy, None) == 0
    with only_trainer(copy), pytest.raises(UserError, match="another training run is using it"):
        train(config(data__data_dir=tmp_path / "data", train__steps=8), copy, None)
    assert not folders


@pytest.mark.long
def test_no_autoencoder_is_trained_while_a_run_encodes(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    refusals, real = [], latents.encode_to

    def encode(*given):
        with pytest.raises(UserError, match="another training run is using it") as error:
            train_autoencoder(config(), tmp_path, None)
        refusals.append(error)
        real(*given)

    monkeypatch.setattr(latents, "encode_to", encode)
    assert train(config(data__data_dir=tmp_path / "data"), tmp_path, None) == 0
    assert len(refusals) == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_latents_are_encoded_as_the_codec_says_once_and_what_a_kill_left_is_removed(devices, tmp_path, monkeypatch):
    """The codec's latents are 3 times the means of 2 x 2 pixels in two channels; mirrored images have mirrored ones."""
    tiny.on_devices(monkeypatch, devices)
    mean = lambda w, x: w * x.reshape(len(x), 4, 2, 4, 2, 3).mean((2, 4))[..., :2]  # noqa: E731
    experiment = Experiment(config(data__data_dir=tmp_path), Codec(mean, lambda _, z: z, jax.numpy.float32(3)))
    folders = encodings(monkeypatch)
    read = lambda: training_records(experiment, tiny.records(), ["these"], Stop()).load().images  # noqa: E731
    expected = 3 * to_float(tiny.split().images).reshape(40, 4, 2, 4, 2, 3).mean((2, 4))[..., :2]
    np.testing.assert_allclose(read(), np.stack([expected, expected[:, :, ::-1]], 1), atol=1e-5)
    read()
    assert len(folders) == 1
    (file,) = (tmp_path / "latents").glob("*/*.array_record")
    file.rename(file.with_name("left.1234.tmp"))
    read()
    assert [path.name for path in file.parent.iterdir() if path.name != ".lock"] == [file.name]


class Encoding:
    """Training records of tiny images, in four parts of ten, encoded to zeros five at a time."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.batches, self.at = folder, [], lambda count: None
        latent = np.zeros((2, *SHAPE), np.float32)
        monkeypatch.setattr(latents.latents, "PART_BYTES", 10 * latent.nbytes)
        encoder = latents.latents.Encoder(lambda batch: self.encode(batch, latent), latent.shape, 5)
        monkeypatch.setattr(latents, "make_encoder", lambda *_: encoder)

    def encode(self, batch, latent):
        self.batches.append(len(batch))
        self.at(len(self.batches))
        return np.stack([latent] * len(batch))

    def __call__(self, stop=None, content=""):
        """Encodes what is missing; returns the records' count."""
        self.batches.clear()
        codec = Codec(lambda w, x: x, lambda w, z: z)
        experiment = Experiment(config(data__data_dir=self.folder), codec)
        experiment.config.data.content = content
        return training_records(experiment, tiny.records(), ["these"], stop or Stop()).count

    def kept(self):
        (folder,) = (self.folder / "latents").iterdir()
        return sorted(path.name[:5] for path in folder.iterdir() if path.name != ".lock")


@pytest.fixture
def encoding(tmp_path, monkeypatch):
    return Encoding(tmp_path, monkeypatch)


# 128 + the signal's number, as in training.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_latents_are_encoded_ends_at_the_next_batch(number, code, encoding, caplog, capfd):
    stop, before = Stop(), signal.getsignal(number)

    def at(count):
        if count == 3:
            signal.raise_signal(number)
            while not stop.code:
                time.sleep(0.001)

    encoding.at = at
    caplog.set_level("INFO", logger="dit_jax")
    with pytest.raises(EndedError, match=r"latents of 10 of 40 images are kept in .*; the same command") as ended:
        encoding(stop)
    assert explain(ended.value) == (code, str(ended.value))
    assert f"{signal.Signals(number).name}: finishing a batch of latents, then saving" in caplog.text
    assert (encoding.batches, encoding.kept()) == ([5, 5, 5], ["00000"])
    assert signal.getsignal(number) == before  # there is nothing to save before the first step
    encoding.at = lambda count: None
    assert "image 0/40  compiling" in capfd.readouterr().err
    assert encoding() == 40
    assert len(encoding.batches) == 6
    assert "image 10/40  compiling" in capfd.readouterr().err


def test_the_time_limit_ends_an_encoding_when_another_part_is_there(encoding):
    """So that each session of a chain of jobs gains one, however short it is."""
    now = [0.0]
    encoding.at = lambda count: now.append(now.pop() + 70)
    for parts in (1, 2, 3):
        with pytest.raises(EndedError) as ended:
            encoding(Stop(60.0, lambda: now[0]))
        assert explain(ended.value)[0] == 75
        assert len(encoding.kept()) == parts
    assert encoding(Stop(200.0, lambda: now[0])) == 40


def test_of_several_processes_the_first_one_encodes_and_the_others_find_it(encoding, monkeypatch):
    """Tested on both sides of the point where they wait for each other."""
    events, latents_there = [], encoding.folder / "latents"
    encoding.at = lambda count: events.append("batch")
    monkeypatch.setattr(together, "sync", lambda: events.append("met"))
    assert encoding() == 40
    assert events == ["batch"] * 8 + ["met"]
    latents_there.rename(encoding.folder / "not yet")
    monkeypatch.setattr(together, "is_first", lambda: False)
    monkeypatch.setattr(together, "sync", lambda: (encoding.folder / "not yet").rename(latents_there))
    assert encoding() == 40
    assert not encoding.batches


def test_other_pictures_of_a_folder_have_latents_of_their_own(encoding):
    """Even if the few images by which splits are told apart are the same."""
    for content, batches in (("a", 8), ("b", 8), ("a", 0)):
        assert encoding(content=content) == 40
        assert len(encoding.batches) == batches
    assert len(list((encoding.folder / "latents").iterdir())) == 2


def test_large_images_are_encoded_in_passes_of_few_pixels():
    mesh, codec = tiny.mesh(2), Codec(lambda w, x: x, lambda w, z: z)
    sizes = [
        latents.make_encoder(codec, mesh, (size, size, 3), (1,), False).batch_size for size in (8, 512, 1024, 4096)
    ]
    assert sizes == [16, 8, 2, 2]


@pytest.mark.long
def test_a_disk_without_room_is_told_before_anything_is_encoded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    experiment = with_codec(trained, config(data__data_dir=tmp_path))
    with pytest.raises(
        UserError, match=r"latents in .* need 0.00 GiB, but only 0.00 GiB are free: make room, or use another"
    ):
        training_records(experiment, tiny.records(), [], Stop())


@pytest.mark.long
def test_damaged_latents_are_one_line_and_are_made_again(trained, tmp_path, capfd):
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    flags = ["--workdir", tmp_path, *tiny.flags(**LATENTS | {"data__data_dir": tmp_path / "data"})]
    assert tiny.run_main(capfd, *flags, "--config.train.steps=2").code == 0
    (file,) = (tmp_path / "data/latents").glob("*/*.array_record")
    whole = file.read_bytes()
    file.write_bytes(whole[:400])
    line = refused(capfd, *flags)
    assert f"{file} is damaged" in line
    file.unlink()
    assert tiny.run_main(capfd, *flags).code == 0
    assert file.read_bytes() == whole


@pytest.mark.long
@pytest.mark.parametrize(
    ("devices", "more"),
    [(8, {}), (4, {"train__shard_params": True, "train__microbatches": 2}), (1, {"data__resident": "false"})],
)
def test_the_same_losses_however_they_are_computed(devices, more, trained, tmp_path, monkeypatch):
    tiny.on_devices(monkeypatch, devices)
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    train(config(**more), tmp_path, None)
    rows = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (trained, tmp_path)
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4)


@pytest.mark.long
def test_evaluation_and_report_see_images(trained, tmp_path, capfd):
    """With a classifier that is trained beside the autoencoder, and evaluations while a run on latents trains."""
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    flags = ["--workdir", tmp_path, *tiny.flags(**LATENTS, evaluate__every_steps=4)]
    for mode in ("train_classifier", "train", "evaluate", "report"):
        done = tiny.run_main(capfd, f"--mode={mode}", *flags)
        assert done.code == 0, done.err
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert np.isfinite(result["fd_classifier"])
    assert "bits_per_dim" not in result
    assert [json.loads(row)["step"] for row in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == [4, 4]
    page = (tmp_path / "report.html").read_text()
    assert "python main.py --mode=train_autoencoder --config configs/default.py" in page
    assert "autoencoder.sha256" not in page.partition("runs/again")[2].partition("</pre>")[0]


@pytest.mark.long
def test_samples_are_images_of_the_datas_size_and_come_with_pictures(sampled, tmp_path):
    drawn = sampled()
    assert drawn["images"].shape == (7, 8, 8, 3)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["denoising.gif", "denoising.png", "grid.png", "samples.npz"]


@pytest.mark.long
def test_tasks_that_start_from_images(sampled, given, loud, tmp_path):
    flags, images = given
    run = load(loud, config(**DDIM))
    codec = run.experiment.codec
    through = to_uint8(np.asarray(codec.decode(codec.weights, codec.encode(codec.weights, to_float(images)))))
    drawn = sampled(sample__task="invert", **flags, **DDIM)
    assert drawn["noise"].shape == (5, *SHAPE)
    for size in (1, 3, 20):
        again = sampled(sample__task="invert", sample__batch_size=size, **flags, **DDIM)
        np.testing.assert_array_equal(again["noise"], drawn["noise"])
    labels = (drawn["labels"] + 1) % 3
    others = draw_all(run, Task(labels, run.task(tasks.from_noise), (drawn["noise"],)))
    assert psnr(drawn["images"], through) > psnr(others, through) + 6
    drawn = sampled(sample__task="image_to_image", sample__strength=0.01, **flags, **DDIM)
    assert psnr(drawn["images"], through) > 25
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = sampled(sample__task="inpaint", sample__mask=tmp_path / "mask.png", sample__n=4, **flags)["images"]
    np.testing.assert_array_equal(drawn[:, mask == 0], images[:4][:, mask == 0])
    assert (drawn[:, mask > 0] != images[:4][:, mask > 0]).any(axis=(1, 2)).all()


@pytest.mark.long
def test_a_latent_is_known_whose_pixels_all_are(trained, given):
    """Rows 2 to 4 are white from column 3 on: of the 4 x 4 blocks of 2 x 2 pixels, rows 1 and 2, columns 1 to 3."""
    run = load(trained, config(sample__task="inpaint", sample__mask="m.png", **given[0]))
    mask = np.zeros((8, 8, 1), bool)
    mask[2:5, 3:] = True
    latents, known = inpaint(run, given[1], np.zeros(5, int), mask).inputs
    expected = np.ones((4, 4), bool)
    expected[1:3, 1:] = False
    np.testing.assert_array_equal(known, np.broadcast_to(expected[None, :, :, None], (5, 4, 4, 1)))
    codec = run.experiment.codec
    np.testing.assert_allclose(latents, codec.encode(codec.weights, to_float(given[1])), atol=1e-5)


@pytest.mark.long
def test_interpolation_starts_and_ends_at_images_of_their_own_noise_of_latents(sampled, loud):
    images = sampled(sample__task="interpolate", sample__n=6, sample__labels="2,0", **DDIM)["images"].astype(int)
    run = load(loud, config(**DDIM))
    for row, label in enumerate((2, 0)):
        ends = to_uint8(np.asarray(run.sample(run.ema_params, jax.random.key(0), [label, label], 2 * row)))
        assert np.abs(images[[3 * row, 3 * row + 2]] - ends).max() <= 1
        assert np.abs(images[3 * row + 1] - ends[0]).max() > 1


@pytest.mark.long
def test_held_out_losses_are_of_latents_and_there_is_no_bound(trained):
    """A fresh network predicts 0, so its loss is the mean square of x_0 at any noise: of the standardised latents."""
    experiment = with_codec(trained, config(diffusion__prediction="x0"))
    run = SimpleNamespace(experiment=experiment, weights=experiment.init_state().params)
    figures = held_out_figures(run, datasets.open_split(experiment.source, "test"))
    assert set(figures) == {"loss_by_noise"}
    made, params = weights_of(trained)
    means = np.asarray(made.model.apply(params, to_float(tiny.split("test").images), method="moments")[0])
    about = json.loads((trained / "autoencoder/latents.json").read_text())
    square = np.square((means - np.array(about["mean"])) / np.array(about["std"])).mean()
    np.testing.assert_allclose(figures["loss_by_noise"]["loss"], square, rtol=1e-4)
    assert abs(np.square(means).mean() - square) > 0.1  # so it shows whether they were standardised


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
        ({"sample__clip_x_0": True}, "sample.clip_x_0=True: latents (model.latents=true) are not limited to -1..1"),
        ({"sample__classifier_scale": 1.0}, "the classifier works on noisy images, not noisy latents"),
        ({"autoencoder__downsample": 3}, "autoencoder.downsample=3: use one of (2, 4, 8)"),
        ({"autoencoder__width": 6}, "autoencoder.width=6: use a multiple of 4"),
        ({"autoencoder__width": 144}, "autoencoder.width=144: use a multiple of 4, or of 32 above 128"),
        (
            {"model__patch_size": 8},
            "model.patch_size=8: it must divide the size of the latents, 4 x 4; use one of [1, 2, 4]",
        ),
        ({"autoencoder__kl_weight": -1.0}, "autoencoder.kl_weight=-1.0: use 0"),
        ({"autoencoder__channels": 0}, "autoencoder.channels=0: use a whole number of at least 1"),
        ({"autoencoder__learning_rate": 0.0}, "autoencoder.learning_rate=0.0: use a number above 0"),
    ],
)
def test_what_cannot_be(more, words):
    with pytest.raises(UserError) as error:
        config(**more)
    assert words in str(error.value)


@pytest.mark.long
def test_another_autoencoder_is_refused(trained, tmp_path, capfd):
    """So is training the run's own autoencoder further."""
    copy = copy_of(trained, tmp_path)
    line = refused(capfd, "--mode=train_autoencoder", "--workdir", copy, "--config.autoencoder.steps=4")
    assert "the run in" in line
    assert "was trained on the latents of step 2; use another workdir" in line
    line = refused(capfd, "--mode=train_autoencoder", "--workdir", copy, "--config.autoencoder.width=64")
    assert "autoencoder.width" in line
    assert line.endswith(f"the run in {copy} was trained on its latents: use another workdir")
    line = refused(capfd, "--mode=sample", "--workdir", copy, "--config.autoencoder.channels=3")
    assert "autoencoder.channels=3" in line
    assert "has 2; use that" in line
    learnt = configs.read(copy)
    learnt.autoencoder.sha256 = "0" * 64
    configs.write(learnt, copy)
    line = refused(capfd, "--mode=sample", "--workdir", copy)
    assert "restore that autoencoder and its latents.json" in line


@pytest.mark.long
def test_the_same_commands_again_change_nothing(trained, tmp_path, capfd):
    copy = copy_of(trained, tmp_path)
    before = [tiny.snapshot(copy / "checkpoints"), tiny.snapshot(copy / "autoencoder/checkpoints")]
    before.append((copy / "autoencoder/latents.json").read_bytes())
    sha256 = configs.read(copy).autoencoder.sha256
    assert len(sha256) == 64
    for mode in ("train_autoencoder", "train"):
        assert tiny.run_main(capfd, f"--mode={mode}", "--workdir", copy, *tiny.flags(**LATENTS)).code == 0
    after = [tiny.snapshot(copy / "checkpoints"), tiny.snapshot(copy / "autoencoder/checkpoints")]
    assert [*after, (copy / "autoencoder/latents.json").read_bytes()] == before
    assert configs.read(copy).autoencoder.sha256 == sha256


DAMAGE = {
    "no JSON": lambda about: "{",
    "a number that is none": lambda about: json.dumps(about | {"mean": [float("nan"), 1.0]}),
    "nothing": lambda about: json.dumps(about | {"std": [None, 1.0]}),
    "too few": lambda about: json.dumps(about | {"mean": [0.5]}),
    "too much": lambda about: json.dumps(about | {"std": [1e300, 1.0]}),
    "no numbers": lambda about: json.dumps(about | {"mean": ["x", "y"]}),
    "no spread": lambda about: json.dumps(about | {"std": [0.0, 1.0]}),
    "of other weights": lambda about: json.dumps(about | {"weights_sha256": "0" * 64}),
    "a list": lambda about: "[]",
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_measures_are_told(damage, trained, tmp_path):
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    path = tmp_path / "autoencoder/latents.json"
    path.write_text(DAMAGE[damage](json.loads(path.read_text())))
    with pytest.raises(UserError, match="is not fully trained; first run --mode=train_autoencoder"):
        with_codec(tmp_path, config())


@pytest.mark.long
def test_other_measures_of_the_same_weights_are_refused(trained, tmp_path):
    copy = copy_of(trained, tmp_path)
    path = copy / "autoencoder/latents.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"mean": [about["mean"][0] + 1e-3, about["mean"][1]]}))
    with pytest.raises(UserError, match=r"restore that autoencoder and its latents.json"):
        with_codec(copy, config())


@pytest.mark.long
def test_measures_that_are_missing_are_made_again_from_the_data_that_are_asked_for(trained, tmp_path, monkeypatch):
    """As after a kill between the last checkpoint and the measuring, on a machine that has the data elsewhere."""
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    (tmp_path / "autoencoder/latents.json").unlink()
    asked, real = [], datasets.open_split
    monkeypatch.setattr(datasets, "open_split", lambda of, *rest: asked.append(of.data_dir) or real(of, *rest))
    assert train_autoencoder(config(data__data_dir="elsewhere"), tmp_path, None) == 0
    assert set(asked) == {"elsewhere"}
    again, before = (json.loads((folder / "autoencoder/latents.json").read_text()) for folder in (tmp_path, trained))
    assert again == before


@pytest.mark.long
def test_what_the_autoencoder_is_goes_into_the_runs_config(trained):
    asked = config(autoencoder__width=64, autoencoder__kl_weight=0.5)
    with_codec(trained, asked)
    assert (asked.autoencoder.width, asked.autoencoder.kl_weight) == (4, 1e-6)
    assert configs.read(trained).autoencoder.sha256 == asked.autoencoder.sha256


def test_images_without_a_whole_number_of_latents_are_refused_before_training(tmp_path, monkeypatch):
    """Even if the config does not set `model.latents` yet."""
    monkeypatch.setitem(datasets.DATASETS, "tiny", dataclasses.replace(tiny.INFO, image_shape=(12, 12, 3)))
    pixels = tiny.config(model__patch_size=2, autoencoder__downsample=8)
    with pytest.raises(UserError, match=r"autoencoder.downsample=8: it must divide the size of the images, 12 x 12"):
        train_autoencoder(pixels, tmp_path / "w", None)
    assert not (tmp_path / "w").exists()


def test_a_run_on_pixels_is_told_as_such(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    configs.write(tiny.config(model__patch_size=2), tmp_path)
    line = refused(capfd, "--workdir", tmp_path, *tiny.flags(**LATENTS))
    assert "holds a run with another config (model.latents: False -> True" in line


@pytest.mark.long
def test_no_autoencoder_is_trained_beside_a_run(trained, tmp_path):
    """The run may be training on its latents already, and have saved and logged nothing yet."""
    copy = copy_of(trained, tmp_path)
    with only_trainer(copy), pytest.raises(UserError, match="another training run is using it"):
        train_autoencoder(config(), copy, None)


@pytest.mark.long
def test_a_damaged_newest_autoencoder_is_trained_again_to_the_same_latents(tmp_path):
    often = config(train__checkpoint_every=1, train__steps_per_call=1)
    assert train_autoencoder(often, tmp_path, None) == 0
    assert train(often, tmp_path, None) == 0
    before = (tmp_path / "autoencoder/latents.json").read_bytes()
    for file in (tmp_path / "autoencoder/checkpoints/2/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert train_autoencoder(often, tmp_path, None) == 0
    assert (tmp_path / "autoencoder/latents.json").read_bytes() == before
    assert load(tmp_path).step == 4
