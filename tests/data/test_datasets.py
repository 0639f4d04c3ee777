"""`info` and `open_split`: facts, arrays, and one clear line for each thing that can be wrong with a folder."""

import dataclasses
import errno
import fcntl
import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import cifar10, datasets, preparation, shapes
from dit_jax.errors import UserError
from tests import tiny

SMALL = {"train": 40, "test": 20}


def load(name, data_dir, split="train"):
    return datasets.open_split(datasets.Source(name, data_dir), split).load()


def contents(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data_dir with a small `shapes` in it."""
    monkeypatch.setattr(shapes, "NUM_EXAMPLES", SMALL)
    load("shapes", tmp_path)
    return tmp_path


def test_info_names_shape_and_classes():
    assert datasets.info("shapes") == datasets.DatasetInfo("shapes", (32, 32, 3), shapes.CLASS_NAMES)
    assert datasets.info("cifar10").image_shape == (32, 32, 3)
    assert datasets.info("cifar10").class_names[0] == "airplane"
    assert datasets.info("cifar10").class_names[9] == "truck"


@pytest.mark.parametrize("split", ["train", "test"])
def test_load_gives_every_example_once(prepared, split, monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 7)
    images, labels = load("shapes", prepared, split)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    drawn = {image.tobytes(): label for image, label in (shapes.example(split, i) for i in range(SMALL[split]))}
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == drawn
    assert len(images) == SMALL[split]
    records = datasets.open_split(datasets.Source("shapes", prepared), split)
    np.testing.assert_array_equal(records.labels(), labels)
    assert np.concatenate([part.images for part in records.first(9).chunks()]).tobytes() == images[:9].tobytes()


def test_the_order_of_a_split_is_fixed(prepared, tmp_path):
    again = load("shapes", tmp_path / "again")
    np.testing.assert_array_equal(load("shapes", prepared).images, again.images)


def test_prepares_only_once(prepared, monkeypatch):
    monkeypatch.setattr(shapes, "example", None)  # drawing anything would fail
    assert len(load("shapes", prepared, "test").labels) == SMALL["test"]


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_EXAMPLES", SMALL)
    draw, drawn = shapes.example, []

    def interrupted(split, index):
        drawn.append(index)
        if len(drawn) > 50:  # within the second split
            raise KeyboardInterrupt
        return draw(split, index)

    monkeypatch.setattr(shapes, "example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("shapes", tmp_path)
    assert contents(tmp_path / "shapes") == {".lock"}
    monkeypatch.setattr(shapes, "example", draw)
    assert len(load("shapes", tmp_path).labels) == SMALL["train"]


@pytest.mark.slow
def test_two_runs_may_prepare_at_once(tmp_path):
    code = (
        "import sys; from dit_jax.data import datasets, shapes; shapes.NUM_EXAMPLES = {'train': 40, 'test': 20}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(datasets.open_split(datasets.Source('shapes', sys.argv[1])).count)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate(timeout=60) for run in runs]
    assert [out for out, _ in said] == ["40\n", "40\n"]
    assert sum(err.count("drawing the data set") for _, err in said) == 1
    assert contents(tmp_path / "shapes") == {".lock", shapes.VERSION}


def test_losing_the_race_takes_the_data_of_the_winner(tmp_path, monkeypatch):
    """On a disk without locks, a second run starts and ends while the first draws, so its folder is not renamed."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(shapes, "NUM_EXAMPLES", SMALL)
    draw = shapes.example

    def overtaken(split, index):
        monkeypatch.setattr(shapes, "example", draw)
        shapes.prepare(tmp_path)
        return draw(split, index)

    monkeypatch.setattr(shapes, "example", overtaken)
    assert len(load("shapes", tmp_path).labels) == SMALL["train"]
    assert contents(tmp_path / "shapes") == {".lock", shapes.VERSION}


def test_a_data_set_that_appears_while_it_is_looked_for_is_not_a_broken_one(tmp_path, monkeypatch):
    def looked_too_early(path):
        path.parent.mkdir()  # another process renames its folder right after this look
        return False

    monkeypatch.setattr(Path, "is_file", looked_too_early)
    assert not preparation.is_prepared(tmp_path / "1.0.0")


def test_what_a_killed_run_left_is_removed(tmp_path, monkeypatch):
    """SIGKILL leaves TFDS's folder with a temporary name."""
    monkeypatch.setattr(shapes, "NUM_EXAMPLES", SMALL)
    command = (
        "import os, sys; from dit_jax.data import shapes; shapes.example = lambda *_: os.kill(os.getpid(), 9)\n"
        "from pathlib import Path; shapes.prepare(Path(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", command, str(tmp_path)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(contents(tmp_path / "shapes")) == 2  # the lock and the half-made folder
    assert len(load("shapes", tmp_path).labels) == SMALL["train"]
    assert contents(tmp_path / "shapes") == {".lock", shapes.VERSION}


def test_nothing_imports_tensorflow(tmp_path):
    code = (
        "import sys; from dit_jax.data import datasets, shapes; shapes.NUM_EXAMPLES = {'train': 40, 'test': 20}\n"
        "datasets.open_split(datasets.Source('shapes', sys.argv[1])).load(); print('tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def refused(*args):
    """Returns the only line of the UserError that opening or reading a split raises."""
    with pytest.raises(UserError) as caught:
        load(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_name_and_split(tmp_path):
    assert "data.name=mnist is not known" in (message := refused("mnist", tmp_path))
    assert "shapes, cifar10" in message
    assert "'valid'" in (message := refused("shapes", tmp_path, "valid"))
    assert "train, test" in message


@pytest.mark.parametrize("below", ["", "folder"])
def test_data_dir_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file" in refused("shapes", tmp_path / "file" / below)


def cut(path):
    path.write_bytes(path.read_bytes()[:70_000])


def blank(path):
    path.write_bytes(b"")


DAMAGES = [("shapes-train.array_record-*", damage) for damage in (blank, cut, lambda path: path.unlink())]
DAMAGES += [("dataset_info.json", blank), ("features.json", lambda path: path.unlink())]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES)
def test_damaged_data_set(prepared, pattern, damage):
    directory = prepared / "shapes" / shapes.VERSION
    (path,) = directory.glob(pattern)
    damage(path)
    message = refused("shapes", prepared)
    assert f"{directory} is damaged" in message
    assert f"delete it (`rm -r {directory}`) and run the same command again" in message


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_what_the_machine_lacks_is_no_damage(prepared, error, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(datasets.tfds, "builder_from_directory", refuse)
    with pytest.raises(type(error)):
        load("shapes", prepared)


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_folder_without_a_data_set(prepared, instead):
    directory = prepared / "shapes" / shapes.VERSION
    (directory / "dataset_info.json").unlink()
    if instead == "a folder":
        (directory / "dataset_info.json").mkdir()
    assert f"{directory} does not hold a complete data set" in refused("shapes", prepared)


def test_data_set_that_tensorflow_prepared(prepared):
    path = prepared / "shapes" / shapes.VERSION / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    message = refused("shapes", prepared)
    assert "tfrecord" in message
    assert "another data_dir" in message


def test_a_shorter_split_than_promised_is_damaged(prepared):
    path = prepared / "shapes" / shapes.VERSION / "dataset_info.json"
    path.write_text(path.read_text().replace('"40"', '"41"'))
    assert "is damaged" in refused("shapes", prepared)


@pytest.mark.parametrize(("mode", "size"), [("L", (6, 4)), ("RGBA", (6, 4)), ("RGB", (4, 6)), ("RGB", (6, 5))])
def test_a_record_of_another_shape_than_promised_is_refused(mode, size):
    """Expected are four rows of six pixels in three colours."""
    png = io.BytesIO()
    Image.new(mode, size).save(png, "PNG")
    with pytest.raises(ValueError, match="6 x 4 x 3"):
        datasets.decode(png.getvalue(), (4, 6, 3))


def test_the_same_images_with_other_labels_have_another_probe():
    one = tiny.records()
    other = dataclasses.replace(one, read=lambda indices: one.read(indices)._replace(labels=one.labels()[indices] + 1))
    assert one.probe() == tiny.records().probe()
    assert one.probe() != other.probe()


def test_features_that_name_code_of_others_are_refused_unimported(prepared, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    path = prepared / "shapes" / shapes.VERSION / "features.json"
    features = path.read_text()
    assert "tensorflow_datasets.core.features.class_label_feature.ClassLabel" in features  # a nested one
    path.write_text(features.replace("tensorflow_datasets.core.features.class_label_feature.", "evil."))
    assert "features.json names the class evil.ClassLabel" in refused("shapes", prepared)
    assert "evil" not in sys.modules


def test_the_command_that_makes_cifar10_again():
    assert datasets.REMAKE["cifar10"](Path("d")) == f"`{cifar10.command('d')}`"
