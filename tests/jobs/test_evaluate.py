"""The modes train_classifier and evaluate through main.py: results, resuming after a kill, one line per mistake."""

import dataclasses
import hashlib
import json
import logging
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.companions.classifier import load_classifier
from dit_jax.data import datasets
from dit_jax.errors import UserError
from dit_jax.evaluation.features import Extractor, weights_hash
from dit_jax.jobs import evaluate, train
from dit_jax.jobs.judging import floor_warning
from dit_jax.jobs.train_classifier import train_classifier
from dit_jax.loading import load
from dit_jax.settings import configs
from dit_jax.training.checkpoint import Checkpointer
from tests import tiny

pytestmark = pytest.mark.medium


@pytest.fixture
def tiny_data(monkeypatch):
    tiny.install(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with a model and a classifier of two steps each."""
    folder = tmp_path_factory.mktemp("to evaluate")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        train.train(tiny.config(train__steps=2), folder, None)
        train_classifier(tiny.config(train__steps=2), folder, None)
    return folder


def without_seconds(workdir, name="evaluation.json"):
    result = json.loads((workdir / name).read_text())
    assert result.pop("seconds") > 0
    return result


def test_training_a_classifier(trained, tiny_data, capfd, caplog):
    caplog.set_level("INFO", logger="dit_jax")
    kept = json.loads((trained / "classifier/accuracy.json").read_text())
    assert (kept["n"], kept["step"], kept["split"]) == (24, 2, "test")
    assert kept["accuracy"] * 24 == pytest.approx(round(kept["accuracy"] * 24))
    done = tiny.run_main(capfd, "--mode=train_classifier", "--workdir", trained)
    assert done.code == 0
    assert "--config.classifier.steps higher" in caplog.text
    assert "clean test images" in caplog.text
    # The run's own config is unchanged.
    assert configs.read(trained).train.steps == 2
    refused = tiny.run_main(capfd, "--mode=train_classifier", "--workdir", trained, "--config.classifier.width=16")
    assert refused.code == 2
    assert "classifier.width: 8 -> 16" in refused.err[0]


@pytest.mark.long
def test_an_unfinished_classifier_is_told(tiny_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train, "Stop", lambda seconds: EndsAtOnce())
    assert train_classifier(tiny.config(classifier__steps=6), tmp_path, None) == 143
    load_classifier(tmp_path, tiny.config())
    assert "classifier has done 1 of its 6 steps: finish it with --mode=train_classifier" in caplog.text


class EndsAtOnce(train.Stop):
    """Asked to end after the first dispatch, of one step."""

    def __call__(self):
        self._calls += 1
        self.code = 143 if self._calls > 1 else 0
        return bool(self.code)


def test_images_predicted_have_losses_and_no_bound(tiny_data):
    experiment = tiny.experiment(diffusion__prediction="x0")
    run = SimpleNamespace(experiment=experiment, weights=experiment.init_state().params)
    figures = evaluate.held_out_figures(run, datasets.open_split(experiment.source, "test"))
    assert set(figures) == {"loss_by_noise"}
    assert np.isfinite(figures["loss_by_noise"]["loss"]).all()


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A copy of the workdir, evaluated in four chunks of images: its result, and the labels that were drawn."""
    workdir, labels, draw = tmp_path_factory.mktemp("evaluated") / "run", [], evaluate.draw
    shutil.copytree(trained, workdir)
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        patch.setattr(evaluate, "CHUNK", 4)
        patch.setattr(evaluate, "draw", lambda run, batch, first: labels.extend(batch) or draw(run, batch, first))
        evaluate.evaluate(tiny.config(train__steps=2), workdir, None)
    return SimpleNamespace(workdir=workdir, labels=labels, result=without_seconds(workdir))


def test_classes_are_drawn_in_their_shares_of_the_training_images(evaluated):
    """The shares are 3 : 1 : 1, so of fifteen 9, 3 and 3; the sixteenth is due to the largest class first."""
    assert np.bincount(evaluated.labels).tolist() == [10, 3, 3]


def test_an_evaluation_says_what_it_depends_on(evaluated):
    result = evaluated.result
    assert "fid" not in result
    assert {"fd_classifier", "accuracy_classifier", "kid_classifier", "precision_classifier"} <= set(result)
    assert set(result["fd_classifier_by_class"]) == set(tiny.INFO.class_names)
    told = {name: result[name] for name in ("n", "seed", "sampler", "steps", "spacing", "guidance", "weights", "step")}
    assert told == {"n": 16, "seed": 0, "sampler": "ddpm", "steps": 3, "spacing": "linspace", "guidance": 1.0,
                    "weights": "ema", "step": 2}  # fmt: skip
    assert (result["features"], result["data"]) == ("classifier", "tiny")
    assert (result["reference_split"], result["reference_n"]) == ("train", 40)
    assert len(result["features_sha256"]) == len(result["weights_sha256"]) == 64
    assert (result["floor"]["split"], result["floor"]["n"]) == ("test", 16)
    assert "too few for 32 features" in result["warning"]
    assert (result["images"], result["epoch"]) == (16, 2 / 5)
    noise, parts = result["loss_by_noise"], result["bits_per_dim_parts"]
    assert (noise["t_from"], noise["t_to"]) == (list(range(0, 20, 2)), list(range(2, 21, 2)))
    assert (noise["n"], noise["images"], noise["split"], noise["prediction"]) == ([24] * 10, 24, "test", "eps")
    assert noise["loss"][9] < noise["loss"][0]  # two steps already lower the loss in pure noise
    assert result["bits_per_dim"] == pytest.approx(parts["prior"] + parts["vlb"] + parts["decoder"])
    assert (parts["variance"], parts["n"], parts["clip_x_0"]) == ("posterior", 24, True)


def test_killed_between_two_chunks_it_draws_what_is_left_and_every_figure_is_the_same(
    evaluated, tiny_data, capfd, monkeypatch
):
    monkeypatch.setattr(evaluate, "CHUNK", 4)
    chunks = sorted(evaluated.workdir.glob("evaluation/*/*.npz"))
    assert [len(np.load(chunk)["images"]) for chunk in chunks] == [4, 4, 4, 4]
    chunks[2].write_bytes(chunks[2].read_bytes().replace(b"(4, ", b"(4( "))  # a header that cannot be parsed
    chunks[3].unlink()
    before, drawn = tiny.snapshot(evaluated.workdir), []
    real = evaluate.draw
    monkeypatch.setattr(evaluate, "draw", lambda run, labels, first: drawn.append(first) or real(run, labels, first))
    again = tiny.run_main(capfd, "--mode=evaluate", "--workdir", evaluated.workdir)
    assert again.code == 0, again.err
    assert "fd_classifier" in again.out
    assert drawn == [8, 12]
    assert without_seconds(evaluated.workdir) == evaluated.result
    rows = (evaluated.workdir / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(row)["n"] for row in rows] == [16, 16]
    after = tiny.snapshot(evaluated.workdir)
    assert all(after[chunk] == before[chunk] for chunk in chunks[:2])


def test_a_flipped_bit_of_a_kept_image_is_drawn_again(trained, tiny_data, capfd, caplog):
    assert tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained).code == 0
    result, chunk = without_seconds(trained), min(trained.glob("evaluation/*/*.npz"))
    whole = chunk.read_bytes()
    pixels = np.load(chunk)["images"].tobytes()
    at = whole.index(pixels) + len(pixels) // 2
    chunk.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained).code == 0
    assert "these images are drawn again" in caplog.text
    assert without_seconds(trained) == result
    assert chunk.read_bytes() == whole


def test_images_that_have_diverged_have_no_figures(trained, tiny_data, capfd):
    flags = ["--config.sample.guidance=3e38", "--config.sample.clip_x_0=false"]
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, *flags)
    assert done.code == 2
    assert "have diverged, so they cannot be evaluated; lower" in done.err[-1]


def test_images_of_a_run_get_the_figures_of_the_run(trained, tiny_data, tmp_path, capfd):
    """samples.npz of the same seed and the same labels, in the shares 3 : 1 : 1, holds the same images."""
    assert tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained).code == 0
    flags = ["--out", tmp_path, "--config.sample.n=16", "--config.sample.labels=0,0,1,2,0"]
    assert tiny.run_main(capfd, "--mode=sample", "--workdir", trained, *flags).code == 0
    given = tmp_path / "samples.npz"
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, "--images", given)
    assert done.code == 0, done.err
    ours, theirs = without_seconds(trained), without_seconds(trained, "evaluation_images.json")
    figures = [
        name
        for name, value in ours.items()
        if "classifier" in name and name not in ("features", "classifier_scale", "classifier_sha256")
    ]
    assert len(figures) >= 9
    assert {name: ours[name] for name in figures} == {name: theirs[name] for name in figures}
    with np.load(given) as file:
        assert theirs["images_sha256"] == ours["images_sha256"] == hashlib.sha256(file["images"].tobytes()).hexdigest()
    assert theirs["images"] == str(given)
    assert "seed" not in theirs


def test_processes_compare_what_they_read(trained, tiny_data, tmp_path, capfd, monkeypatch):
    """The data, then how many images are given, then what was read of them."""
    compared = []
    monkeypatch.setattr(evaluate, "check_alike", lambda what, mine, fix: compared.append((what, mine)))
    images = tiny.split().images[:12]
    np.savez(tmp_path / "some.npz", images=images)
    given = ["--images", tmp_path / "some.npz"]
    assert tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, *given).code == 0
    assert [what for what, _ in compared] == ["data", "images", "images"]
    assert compared[0][1] == [tiny.records(split).probe() for split in ("train", "test")]
    assert compared[1][1] == 12
    assert compared[2][1] == hashlib.sha256(images.tobytes()).hexdigest()


def test_a_classifier_without_its_config_is_not_taken_for_none(trained, tiny_data, tmp_path, capfd):
    workdir = shutil.copytree(trained, tmp_path / "w")
    (workdir / "classifier" / "config.json").unlink()
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", workdir)
    assert done.code == 2
    assert done.err[-1] == f"error: {workdir / 'classifier'} has checkpoints but no config.json; restore it"


def test_training_images_are_like_themselves_and_the_floor_is_of_test_images(
    trained, tiny_data, tmp_path, capfd, caplog
):
    data = tiny.split()
    for i, image in enumerate(data.images):
        Image.fromarray(image).save(tmp_path / f"{i:03d}.png")
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, "--images", tmp_path)
    assert done.code == 0, done.err
    assert "no labels" in caplog.text
    result = without_seconds(trained, "evaluation_images.json")
    assert result["fd_classifier"] == pytest.approx(0, abs=1e-9)
    assert result["precision_classifier"] == result["recall_classifier"] == result["coverage_classifier"] == 1
    assert (result["floor"]["split"], result["floor"]["n"]) == ("test", 24)
    assert result["floor"]["fd_classifier"] > 1e-6
    assert "accuracy_classifier" not in result
    assert "fd_classifier_by_class" not in result


MISTAKES = {
    "nothing there": ("none", "there is no such file or folder"),
    "empty folder": ("empty", "it has no pictures"),
    "broken picture": ("broken", "broken/1.png cannot be read"),
    "no NPZ": ("text.npz", "cannot be read"),
    "no images in it": ("other.npz", "cannot be read"),
    "floats": ("floats.npz", "its images are float32 (12, 8, 8, 3); give uint8"),
    "wrong size": ("large.npz", "has images of (9, 9, 3), but the data set has (8, 8, 3)"),
    "too few": ("few.npz", "3 images are too few; give at least 10"),
    "labels missing one": ("labels.npz", "its labels are int64 (11,); give integers, one per image"),
    "labels beyond": ("beyond.npz", "its labels are 0..3; the data set's are 0..2"),
    "pickled": ("pickled.npz", "cannot be read"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of files and folders for --images that cannot be used."""
    folder = tmp_path_factory.mktemp("given")
    images = tiny.split().images[:12]
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    for i in range(12):
        Image.fromarray(images[i]).save(folder / f"broken/{i}.png")
    (folder / "broken/1.png").write_bytes((folder / "broken/1.png").read_bytes()[:100])
    (folder / "text.npz").write_text("no archive")
    np.savez(folder / "other.npz", pictures=images)
    np.savez(folder / "floats.npz", images=images.astype(np.float32))
    np.savez(folder / "large.npz", images=np.zeros((12, 9, 9, 3), np.uint8))
    np.savez(folder / "few.npz", images=images[:3])
    np.savez(folder / "labels.npz", images=images, labels=np.zeros(11, int))
    np.savez(folder / "beyond.npz", images=images, labels=np.arange(12) % 4)
    np.savez(folder / "pickled.npz", images=np.array([{}, []], object), allow_pickle=True)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_images_that_are_none_are_one_line(mistake, trained, given, tiny_data, capfd):
    name, told = MISTAKES[mistake]
    before = tiny.snapshot(trained)
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, "--images", given / name)
    assert done.code == 2
    errors = [line for line in done.err if line.startswith("error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert "Traceback" not in "\n".join(done.err)
    assert tiny.snapshot(trained) == before


def test_a_broken_picture_is_named_and_left_out_if_asked(trained, given, tiny_data, capfd, caplog):
    skip = ["--images", given / "broken", "--config.evaluate.broken_images=skip"]
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, *skip)
    assert done.code == 0, done.err
    assert "broken/1.png is skipped" in caplog.text
    assert without_seconds(trained, "evaluation_images.json")["n"] == 11


@pytest.mark.long
def test_classifier_guidance(trained, tiny_data, tmp_path, capfd, monkeypatch):
    """It makes images likelier by the classifier, and the same on one device and eight; an evaluation records it."""
    _, extractor = load_classifier(trained, tiny.config())
    log_p = []
    for scale in ("0", "20"):
        flags = ["--config.sample.n=16", f"--config.sample.classifier_scale={scale}", "--config.sample.clip_x_0=false"]
        done = tiny.run_main(capfd, "--mode=sample", "--workdir", trained, "--out", tmp_path / scale, *flags)
        assert done.code == 0, done.err
        with np.load(tmp_path / scale / "samples.npz") as arrays:
            _, logits = extractor.extract(arrays["images"])
            chosen = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            log_p.append(chosen[np.arange(16), arrays["labels"]].mean())
    assert log_p[1] > log_p[0]
    told = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, "--config.sample.classifier_scale=2")
    assert told.code == 0, told.err
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["classifier_scale"] == 2
    assert result["classifier_sha256"] == result["features_sha256"]
    tiny.on_devices(monkeypatch, 1)
    assert tiny.run_main(capfd, "--mode=sample", "--workdir", trained, "--out", tmp_path / "1", *flags).code == 0
    on_eight, on_one = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("20", "1"))
    assert np.abs(on_eight - on_one).max() <= 1


@pytest.mark.long
def test_classifier_guidance_needs_a_classifier_of_the_same_noise(trained, tiny_data, tmp_path, capfd):
    guided = ["--mode=sample", "--workdir", tmp_path / "run", "--config.sample.classifier_scale=1"]
    train.train(tiny.config(train__steps=2), tmp_path / "run", None)
    assert "has no trained classifier; first run" in tiny.run_main(capfd, *guided).err[-1]
    train_classifier(tiny.config(diffusion__num_steps=30), tmp_path / "other", None)
    (tmp_path / "other" / "classifier").rename(tmp_path / "run" / "classifier")
    assert "was trained with other noise" in tiny.run_main(capfd, *guided).err[-1]
    inverted = [*guided, "--config.sample.task=invert", "--config.sample.images=x", "--config.sample.sampler=ddim"]
    assert "sample.classifier_scale=1.0: guidance cannot be traced back" in tiny.run_main(capfd, *inverted).err[-1]


def test_raw_weights_are_evaluated_and_no_loss_is_measured_if_so_asked(trained, tiny_data, capfd):
    flags = ["--config.sample.weights=raw", "--config.evaluate.loss_n=0"]
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", trained, *flags)
    assert done.code == 0, done.err
    result = without_seconds(trained)
    with Checkpointer(trained, 1, read_only=True) as checkpointer:
        state = checkpointer.restore(tiny.experiment().abstract_state())
    assert state is not None
    assert (result["weights"], result["weights_sha256"]) == ("raw", weights_hash(state.params))
    assert not {"loss_by_noise", "bits_per_dim"} & set(result)


@pytest.mark.parametrize("other", [{"data__class_names": "cat/fox"}, {"data__image_size": 16}], ids=["classes", "size"])
def test_a_classifier_of_another_folder_of_pictures_is_refused(other, tiny_data, tmp_path):
    own = {
        "data__name": "image_folder",
        "data__root": "pictures",
        "data__class_names": "cat/dog",
        "data__image_size": 8,
        "data__content": "x",
    }
    (tmp_path / "classifier" / "checkpoints" / "2").mkdir(parents=True)
    configs.write(tiny.config(**own | other), tmp_path / "classifier")
    with pytest.raises(UserError, match=r"^data.name=image_folder: .* with other classes or another image size"):
        load_classifier(tmp_path, tiny.config(**own))


def test_other_mistakes_are_one_line(trained, tiny_data, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("DIT_JAX_INCEPTION", raising=False)
    configs.write(configs.read(trained), tmp_path)
    inception = "--config.evaluate.features=inception"
    mistakes = [
        ("first run python main.py --mode=train_classifier", "evaluate", tmp_path, []),
        ("--config.evaluate.features=classifier", "evaluate", trained, [inception]),
        ("evaluate.features=vgg is not known", "evaluate", trained, ["--config.evaluate.features=vgg"]),
        ("evaluate.n=9", "evaluate", trained, ["--config.evaluate.n=9"]),
        ("--mode=sample does not use it", "sample", trained, ["--images=x"]),
        ("omit --out", "evaluate", trained, ["--out=x"]),
        ("=12 does not split over 8", "train_classifier", tmp_path, ["--config.classifier.batch_size=12"]),
        ("=48: the data has only 40 images", "train_classifier", tmp_path, ["--config.classifier.batch_size=48"]),
        ("classifier.width=12", "train_classifier", tmp_path, ["--config.classifier.width=12"]),
    ]
    for told, mode, workdir, more in mistakes:
        done = tiny.run_main(capfd, f"--mode={mode}", "--workdir", workdir, *more)
        assert done.code == 2
        assert len(done.err) == 1
        assert told in done.err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_images_that_are_kept_are_used_for_another_n(tmp_path, monkeypatch):
    """Batches of 4, two per file: a file that has too few images is drawn again, and no image changes."""
    asked, run = [], SimpleNamespace(experiment=SimpleNamespace(info=SimpleNamespace(image_shape=(1, 1, 1))))

    def draw(run, labels, first):
        asked.append(first)
        return np.arange(first, first + 4, dtype=np.uint8).reshape(4, 1, 1, 1)

    monkeypatch.setattr(evaluate, "CHUNK", 8)
    monkeypatch.setattr(evaluate, "draw", draw)
    for n, drawn in ((10, [0, 4, 8]), (12, []), (3, []), (14, [8, 12]), (20, [16])):
        asked.clear()
        chunks = list(evaluate.drawn(run, np.zeros(-(-n // 4) * 4, int), n, 4, tmp_path))
        assert np.concatenate(chunks).ravel().tolist() == list(range(n))
        assert asked == drawn


def test_the_folder_of_images_depends_on_what_they_do(trained, tiny_data, monkeypatch):
    """It does not depend on the features, nor on the number of images, unless that is less than a batch."""
    monkeypatch.setattr(evaluate, "drawn", lambda run, labels, n, batch_size, folder: folder)
    run = load(trained, tiny.config(train__steps=2))
    monkeypatch.setattr(evaluate.loading, "load", lambda *_: run)

    def folder(counts=(5, 5, 5), **more):
        config = tiny.config(train__steps=2, **{"sample__batch_size": 12} | more)
        return evaluate.from_run(config, trained, np.array(counts)).images.chunks()

    same = [folder(evaluate__n=n, evaluate__features=name) for n in (12, 40) for name in ("classifier", "inception")]
    assert len({*same, folder((1, 1, 1))}) == 1
    others = [{"counts": (5, 5, 6)}, {"evaluate__n": 11}, {"sample__batch_size": 10}, {"sample__seed": 1}]
    others += [{"sample__guidance": 2.0}, {"sample__steps": 4}, {"sample__sampler": "ddim"}]
    folders = {same[0], *(folder(**other) for other in others)}
    for kinds in (["cpu", "cpu"], ["NVIDIA H100"] * 2, ["NVIDIA H100"]):
        devices = np.array([SimpleNamespace(device_kind=kind) for kind in kinds])
        mesh = SimpleNamespace(devices=devices, size=devices.size)
        monkeypatch.setitem(run.experiment.__dict__, "mesh", mesh)
        folders.add(folder())
    raw = dataclasses.replace(run, weights={"kernel": jnp.zeros(2)})  # as of a new run in the same folder
    monkeypatch.setattr(evaluate.loading, "load", lambda *_: raw)
    folders.add(folder())
    assert len(folders) == 1 + len(others) + 4


def test_an_inception_score_of_fewer_than_1000_images_is_warned_of(tiny_data, tmp_path, monkeypatch, caplog):
    """The score of a split is at most its number of images: of 999 in ten splits, 100."""
    features = lambda images: (images[:, 0, 0, :2].astype(np.float32), images[:, 1, 1].astype(np.float32))  # noqa: E731
    monkeypatch.setattr(evaluate, "load_features", lambda *_: Extractor("inception", "", features))
    images = np.random.default_rng(0).integers(0, 256, (1_000, 8, 8, 3), dtype=np.uint8)
    for n, told in ((1_000, 0), (999, 1)):
        np.savez(tmp_path / "given.npz", images=images[:n])
        evaluate.evaluate(tiny.config(evaluate__features="inception"), tmp_path / "w", None, tmp_path / "given.npz")
        found = [
            text for text in map(logging.LogRecord.getMessage, caplog.records) if text.startswith("inception_score")
        ]
        few = "inception_score: 999 images in ten splits bias it low, to at most 100; compare only with as many images"
        assert found == [few] * told


def test_with_too_few_training_images_nothing_is_drawn(trained, tiny_data, monkeypatch):
    few = dataclasses.replace(tiny.records(), count=9)
    monkeypatch.setattr("dit_jax.data.datasets.open_split", lambda *_: few)
    monkeypatch.setattr(evaluate, "from_run", lambda *_: pytest.fail("images are drawn"))
    with pytest.raises(UserError, match=r"^data.name=tiny: 9 training images are too few to compare with; at least 10"):
        evaluate.evaluate(configs.read(trained), trained, None)


def test_too_few_images_and_fewer_real_ones_are_recorded_and_warned_of(tiny_data, tmp_path, monkeypatch, caplog):
    """The features are the 192 pixel values; there are 40 training images and 24 test images."""
    features = lambda images: (images.reshape(len(images), -1).astype(np.float32), images[:, 0, 0].astype(np.float32))  # noqa: E731
    monkeypatch.setattr(evaluate, "load_features", lambda *_: Extractor("inception", "of pixels", features))
    images = np.random.default_rng(0).integers(0, 256, (25, 8, 8, 3), dtype=np.uint8)
    for n in (24, 25):
        caplog.clear()
        np.savez(tmp_path / "given.npz", images=images[:n])
        evaluate.evaluate(tiny.config(evaluate__features="inception"), tmp_path / "w", None, tmp_path / "given.npz")
        result = without_seconds(tmp_path / "w", "evaluation_images.json")
        warning, floor = result["warning"], result["floor"]
        assert all(str(count) in warning for count in (n, 40, 192))
        assert f"fid: {warning}" in caplog.messages
        assert (floor["n"], floor["warning"]) == (24, floor_warning(24, n))  # which is None for 24, see test_judging.py
        assert n == 24 or floor["warning"] in caplog.messages
