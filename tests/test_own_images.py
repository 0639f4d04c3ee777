"""A user's own pictures on the command line: training, sampling, evaluation, and the messages when they change."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dit_jax
from dit_jax.data import datasets, image_folder
from dit_jax.errors import UserError
from dit_jax.jobs.evaluate import floor_of, table
from tests import tiny
from tests.process import final_state

NAMES = ["bee", "wasp, common"]  # a folder's name may have a comma


def paint(root, name, count, seed=0):
    rng = np.random.default_rng(seed)
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(root / name / f"{seed}_{i}.png")


@pytest.fixture
def root(tmp_path):
    """12 training pictures and 16 test pictures of each of two classes."""
    for seed, name in enumerate(NAMES):
        paint(tmp_path / "root" / "train", name, 12, seed)
        paint(tmp_path / "root" / "val", name, 16, seed + 10)
    return tmp_path / "root"


def flags(tmp_path, **more):
    own = {"data__name": "image_folder", "data__root": tmp_path / "root", "data__data_dir": tmp_path / "data"}
    return [*tiny.flags(**own | {"data__image_size": 8, "sample__labels": "bee"} | more), "--workdir", tmp_path / "run"]


def ran(capfd, *arguments):
    done = tiny.run_main(capfd, *arguments)
    assert done.code == 0, done.err
    return done


def refused(capfd, *arguments):
    """Returns the only line on stderr of a command that is refused."""
    done = tiny.run_main(capfd, *arguments)
    assert done.code == 2
    assert len(done.err) == 1
    return done.err[0]


@pytest.mark.long
def test_train_sample_evaluate_and_go_on_without_the_folder(root, tmp_path, capfd, monkeypatch):
    tiny.on_devices(monkeypatch, 1)
    ran(capfd, *flags(tmp_path))
    shutil.move(root, tmp_path / "away")
    workdir = ["--workdir", tmp_path / "run"]
    streamed = "--config.data.resident=false"
    ran(capfd, *workdir, streamed, "--config.train.steps=9")
    assert int(final_state(tmp_path / "run").step) == 9
    ran(capfd, *workdir, "--mode=train_classifier", streamed)
    ran(capfd, *workdir, "--mode=evaluate")
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (told["data"], told["reference_n"], told["floor"]["n"]) == ("image_folder", 24, 16)
    shutil.rmtree(tmp_path / "data")  # sampling does not need even the copy
    ran(capfd, *workdir, "--mode=sample", "--config.sample.labels=0,1,bee")
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["labels"].tolist() == [0, 1, 0, 0, 1, 0, 0]
    run = dit_jax.load(tmp_path / "run")
    assert list(run.experiment.info.class_names) == NAMES
    assert run.sample(run.ema_params, jax.random.key(0), [1]).shape == (1, 8, 8, 3)
    line = refused(capfd, *workdir, "--config.train.steps=12")
    assert f"data.root={root}: there is no such folder" in line
    line = refused(capfd, *flags(tmp_path))
    assert f"data.root={root}: there is no such folder" in line
    assert "continues without --config" in line


@pytest.mark.long
def test_what_changes_between_two_starts(root, tmp_path, capfd, caplog, monkeypatch):
    tiny.on_devices(monkeypatch, 1)
    ran(capfd, *flags(tmp_path, train__steps=2))
    made, make = [], image_folder.make
    monkeypatch.setattr(image_folder, "make", lambda *given: made.append(1) or make(*given))
    ran(capfd, *flags(tmp_path, train__steps=4))
    assert not made
    assert "another run" not in caplog.text
    paint(root / "train", "bee", 1, seed=30)
    ran(capfd, *flags(tmp_path, train__steps=6))
    assert made
    assert "has changed since this run read it; from here on this is another run" in caplog.text
    caplog.clear()
    ran(capfd, *flags(tmp_path, train__steps=8))
    assert "another run" not in caplog.text
    paint(root / "train", "hornet", 2)
    before = tiny.snapshot(tmp_path / "run")
    line = refused(capfd, *flags(tmp_path, train__steps=10))
    assert "data.class_names: bee/wasp, common -> bee/hornet/wasp, common" in line
    line = refused(capfd, "--workdir", tmp_path / "run", "--config.train.steps=10")
    assert "has other classes than the run: it adds hornet; restore the class folders, or use another workdir" in line
    assert tiny.snapshot(tmp_path / "run") == before
    ran(capfd, "--workdir", tmp_path / "run", "--mode=sample")


MISTAKES = {
    "no root": ({"data__root": ""}, "data.root='': set --config.data.root=DIR to the folder of pictures"),
    "no such root": ({"data__root": "nowhere"}, "data.root=nowhere: there is no such folder; use one with a folder"),
    "size 0": ({"data__image_size": 0}, "data.image_size=0: use a number of pixels from 1 to 4096"),
    "patch": ({"data__image_size": 10}, "model.patch_size=4: it must divide the size of the images, 10 x 10 pixels"),
    "label": ({"sample__labels": "ant"}, "the classes are 0 bee, 1 wasp, common"),
    "batch": ({"train__batch_size": 32}, "train.batch_size=32: the data has only 24 images; use no more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_makes_no_workdir(mistake, root, tmp_path, capfd):
    more, words = MISTAKES[mistake]
    done = tiny.run_main(capfd, *flags(tmp_path, **more))
    assert done.code == 2
    assert words in done.err[-1]
    assert sum(line.startswith("error: ") for line in done.err) == 1
    assert not (tmp_path / "run").exists()


def damaged_test(open_split):
    """Returns `open_split` with a test split that cannot be read."""

    def opened(source, split="train"):
        if split == "test":
            raise UserError("DIR is damaged")
        return open_split(source, split)

    return opened


@pytest.mark.long
def test_one_picture_a_class_is_trained_on_and_told_where_it_cannot_be_judged(tmp_path, capfd, caplog, monkeypatch):
    tiny.on_devices(monkeypatch, 1)
    for seed, name in enumerate(NAMES):
        paint(tmp_path / "root", name, 1, seed)
    size = {"train__batch_size": 2, "classifier__batch_size": 2}
    ran(capfd, *flags(tmp_path, **size), "--mode=train_classifier")
    assert "its quality cannot be measured: data.root: it has no test pictures" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "open_split", damaged_test(datasets.open_split))
        assert refused(capfd, *flags(tmp_path, **size), "--mode=train_classifier") == "error: DIR is damaged"
    before = tiny.snapshot(tmp_path)
    more = {"evaluate__features": "classifier", "evaluate__every_steps": 1}
    assert "it has no test pictures" in refused(capfd, *flags(tmp_path, **size | more))
    assert tiny.snapshot(tmp_path) == before


def test_a_broken_picture_is_told_by_the_command(root, tmp_path, capfd):
    (root / "train" / "bee" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = tiny.run_main(capfd, *flags(tmp_path))
    assert done.code == 2
    assert f"{root}/train/bee/x.png cannot be read" in done.err[-1]
    assert "--config.data.skip_broken=true" in done.err[-1]
    assert not (tmp_path / "run").exists()


def test_a_few_test_pictures_are_no_floor_and_the_figures_are_told_without(caplog):
    few = tiny.records().first(9)
    floor = floor_of(None, None, few, ())
    assert floor == {"split": "test", "n": 9}
    assert "9 test images are too few for a floor; at least 10 are needed" in caplog.text
    told = table({"n": 40, "kid": 0.25, "guidance": 2.0, "floor": floor}, ["kid"])
    assert told.split() == ["40", "images", "9", "real", "kid", "0.25", "-"]
