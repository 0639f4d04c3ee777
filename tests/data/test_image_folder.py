"""A folder of pictures as a data set: its contents, when its copy is remade, and the line about what cannot be used."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dit_jax.data import datasets, folders, image_folder
from dit_jax.errors import UserError
from dit_jax.settings import checks

SIZE = 8


def paint(path, seed, size=(8, 8)):
    """Saves a picture that is unique to the seed; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def fill(root, counts, first=0):
    """Saves counts[class] pictures as root/class/0.png, 1.png, ...; returns {bytes: class}."""
    made = {}
    for name, count in counts.items():
        for i in range(count):
            made[paint(root / name / f"{i}.png", first).tobytes()] = name
            first += 1
    return made


def source(root, data_dir, names=("cat", "dog"), **more):
    folder = image_folder.Folder(str(root), SIZE, names, **more)
    return datasets.Source(image_folder.NAME, data_dir, folder)


def read(of):
    """Returns {split: {bytes of an image: its class}}."""
    splits = {}
    for split in datasets.SPLITS:
        images, labels = datasets.open_split(of, split).load()
        splits[split] = {x.tobytes(): of.folder.class_names[i] for x, i in zip(images, labels, strict=True)}
    return splits


@pytest.fixture
def root(tmp_path):
    """A folder of 40 pictures of the class cat and 3 of dog."""
    fill(tmp_path / "root", {"dog": 3, "cat": 40})
    return tmp_path / "root"


def test_every_picture_is_in_one_split_under_its_class(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "AT_ONCE", 7)
    made = fill(tmp_path / "root", {"dog": 3, "cat": 40})
    found = source(tmp_path / "root", tmp_path / "data")
    splits = read(found)
    assert splits["train"] | splits["test"] == made
    assert not set(splits["train"]) & set(splits["test"])
    assert sorted(splits["test"].values()) == ["cat", "cat", "dog"]  # one in twenty, but at least one per class
    facts = datasets.info(found.name, found.folder)
    assert facts == datasets.DatasetInfo("image_folder", (8, 8, 3), ("cat", "dog"))


def test_a_class_of_one_is_trained_on(tmp_path):
    made = fill(tmp_path / "root", {"cat": 1, "dog": 1})
    of = source(tmp_path / "root", tmp_path / "data")
    assert len(datasets.open_split(of).load().labels) == len(made)
    with pytest.raises(UserError, match="has no test pictures"):
        datasets.open_split(of, "test")


def test_a_new_picture_changes_the_held_out_ones_by_one_at_most(root):
    before = {p.path for p in folders.scan(str(root)).splits["test"]}
    assert before == {p.path for p in folders.scan(str(root)).splits["test"]}
    for i in range(40, 70):
        paint(root / "cat" / f"{i}.png", i)
        after = {p.path for p in folders.scan(str(root)).splits["test"]}
        assert len(before - after) <= 1
        before = after


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_folders_of_splits_are_the_splits(name, tmp_path):
    train = fill(tmp_path / "root" / "train", {"cat": 3, "dog": 2})
    test = fill(tmp_path / "root" / name, {"dog": 2}, first=100)  # a class may lack test pictures
    splits = read(source(tmp_path / "root", tmp_path / "data"))
    assert splits == {"train": train, "test": test}
    assert folders.class_names(str(tmp_path / "root")) == ("cat", "dog")


def test_of_two_folders_of_test_pictures_the_one_that_is_not_used_is_told(tmp_path):
    for i, name in enumerate(("train", "test", "val")):
        fill(tmp_path / name, {"cat": 2, "dog": 2}, first=100 * i)
    found = folders.scan(str(tmp_path))
    assert {p.path.split("/")[0] for p in found.splits["test"]} == {"test"}
    assert found.unused == (f"{tmp_path / 'val'} is not used: the test pictures are those of {tmp_path / 'test'}",)


@pytest.mark.parametrize(("there", "link"), [("test", "val"), ("val", "test")])
def test_two_names_of_one_folder_of_test_pictures_are_no_two_folders(there, link, tmp_path):
    for i, name in enumerate(("train", there)):
        fill(tmp_path / name, {"cat": 2, "dog": 2}, first=100 * i)
    (tmp_path / link).symlink_to(there)
    found = folders.scan(str(tmp_path))
    assert len(found.splits["test"]) == 4
    assert not found.unused


def test_train_and_test_may_be_classes(tmp_path):
    """They are classes of these names, as there are no folders in them."""
    fill(tmp_path, {"train": 2, "test": 2})
    assert folders.class_names(str(tmp_path)) == ("test", "train")


def test_links_are_followed_and_hidden_names_passed_over(root, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "dog").symlink_to(root / "dog")
    (tmp_path / "linked" / "cat").mkdir()
    (tmp_path / "linked" / "cat" / "one.png").symlink_to(root / "cat" / "1.png")
    (tmp_path / "linked" / ".git").mkdir()
    (tmp_path / "linked" / "cat" / "._one.png").write_text("of a Mac")
    found = folders.scan(str(tmp_path / "linked"))
    assert found.class_names == ("cat", "dog")
    assert [p.path for p in found.splits["train"]] == ["cat/one.png", *[p.path for p in found.splits["train"][1:]]]
    assert sum(map(len, found.splits.values())) == 4
    assert not found.unused


def test_names_end_in_any_case(tmp_path):
    for name in ("a.PNG", "b.Jpg", "c.jpeg", "d.WebP"):
        picture = Image.new("RGB", (8, 8))
        (tmp_path / "cat").mkdir(exist_ok=True)
        picture.save(tmp_path / "cat" / name)
    assert sum(map(len, folders.scan(str(tmp_path)).splits.values())) == 4


def test_a_file_may_have_a_name_of_any_bytes(root, tmp_path):
    os.rename(root / "dog" / "1.png", os.fsencode(root / "dog") + b"/caf\xe9.png")
    assert sum(map(len, read(source(root, tmp_path / "data")).values())) == 43


def test_other_files_are_left_out_with_a_word(root, tmp_path, caplog):
    (root / "readme.txt").write_text("about")
    (root / "cat" / "moving.gif").write_text("a gif")
    read(source(root, tmp_path / "data"))
    (told,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert told.startswith("data.root: files ignored: 2, such as")
    assert "pictures are .png, .jpg, .jpeg, .webp" in told


def text(path):
    path.parent.mkdir()
    path.write_text("")


def unreadable(root):
    folder = root / "cat"
    real = os.scandir

    def scandir(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    return scandir


MISTAKES = {
    "no such folder": (lambda root: root.rename(root.with_name("away")), ["there is no such folder", "ROOT/CLASS"]),
    "a file": (lambda root: (root.rename(root.with_name("away")), root.write_text("")), ["it is a file"]),
    "no classes": (lambda root: [d.rename(root.parent / d.name) for d in root.iterdir()], ["has no class folder"]),
    "loose pictures": (lambda root: paint(root / "a.png", 1), ["a.png is not in a class folder", "move it"]),
    "an empty class": (lambda root: (root / "emu").mkdir(), ["emu has no pictures", "remove the folder"]),
    "a class of texts": (lambda root: text(root / "emu" / "a.txt"), ["has no pictures (pictures are .png"]),
    "a folder in a class": (lambda root: paint(root / "cat" / "old" / "a.png", 1), ["cat/old is a folder", "move its"]),
    "train, yet classes": (lambda root: paint(root / "train" / "emu" / "a.png", 1), ["train and test (or val)"]),
    "a link to nothing": (lambda root: (root / "cat" / "l.png").symlink_to("none"), ["is not a file", "remove it"]),
    "a circle of links": (lambda root: (root / "l").symlink_to("l"), ["/l cannot be read (Too many", "remove it"]),
    "one in a class": (lambda root: (root / "cat" / "l.png").symlink_to("l.png"), ["l.png cannot be read", "remove"]),
    "a name with a line's end": (lambda root: paint(root / "c\nat" / "a.png", 1), ["rename it"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, root, tmp_path):
    make, words = MISTAKES[mistake]
    make(root)
    with pytest.raises(UserError) as caught:
        folders.scan(str(root))
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(caught.value).startswith("data.root")
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read(root, monkeypatch):
    monkeypatch.setattr(folders.os, "scandir", unreadable(root))
    with pytest.raises(UserError, match=r"cat cannot be read \(Permission denied\); fix its permissions"):
        folders.scan(str(root))


def test_a_test_class_that_training_has_not(tmp_path):
    fill(tmp_path / "train", {"cat": 2})
    fill(tmp_path / "test", {"cat": 2, "emu": 1})
    with pytest.raises(UserError, match=r"test/emu is a class without training pictures; make .*train/emu"):
        folders.scan(str(tmp_path))


def test_a_broken_picture_is_named_and_nothing_is_left(root, tmp_path):
    path = root / "cat" / "17.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        read(source(root, tmp_path / "data"))
    assert f"{path} cannot be read" in str(caught.value)
    assert "data.skip_broken=true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"]


def test_broken_pictures_may_be_left_out(root, tmp_path, caplog):
    caplog.set_level("INFO", logger="dit_jax")
    for i in (3, 4, 5):
        (root / "cat" / f"{i}.png").write_bytes(b"")
    splits = read(source(root, tmp_path / "data", skip_broken=True))
    assert sum(map(len, splits.values())) == 40
    assert "broken pictures skipped (3): cat/3.png, cat/4.png, cat/5.png" in caplog.text
    counts = f"{len(splits['train'])} for training, {len(splits['test'])} for testing"
    assert counts in caplog.text
    with pytest.raises(UserError, match=str(root / "cat")):  # without skip_broken, that copy is not used
        read(source(root, tmp_path / "data"))
    for i in range(3):
        (root / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="every picture of the class dog is broken"):
        read(source(root, tmp_path / "data", skip_broken=True))


def test_a_file_server_that_is_gone_breaks_no_picture(root, tmp_path, monkeypatch):
    """Otherwise the copy, which is made once, would lack the picture for ever."""

    def late(path, size):
        raise OSError(errno.ETIMEDOUT, "Connection timed out", str(path))

    monkeypatch.setattr(image_folder.pictures, "read_square", late)
    with pytest.raises(UserError, match="Connection timed out"):
        read(source(root, tmp_path / "data", skip_broken=True))
    monkeypatch.undo()
    assert sum(map(len, read(source(root, tmp_path / "data", skip_broken=True)).values())) == 43


def test_a_split_without_a_whole_picture_is_told(tmp_path):
    fill(tmp_path / "root" / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / "root" / "test", {"cat": 1, "dog": 1})
    for name in ("cat", "dog"):
        (tmp_path / "root" / "test" / name / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="every test picture is broken"):
        read(source(tmp_path / "root", tmp_path / "data", skip_broken=True))


def copies(data_dir):
    return sorted(path.parent.name for path in (data_dir / "image_folder").glob("*/1.0.0"))


def test_the_copy_is_made_once(root, tmp_path, monkeypatch):
    before = read(source(root, tmp_path / "data"))
    monkeypatch.setattr(image_folder, "make", None)  # making anything would fail
    assert read(source(root, tmp_path / "data")) == before
    moved = root.rename(root.with_name("moved"))
    assert read(source(moved, tmp_path / "data")) == before
    assert len(copies(tmp_path / "data")) == 1


CHANGES = {
    "a picture more": lambda root: paint(root / "dog" / "9.png", 99),
    "a picture less": lambda root: (root / "dog" / "1.png").unlink(),
    "another picture": lambda root: paint(root / "dog" / "1.png", 99),
    "another class": lambda root: (root / "cat" / "1.png").rename(root / "dog" / "new.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_noticed(change, root, tmp_path):
    before = read(source(root, tmp_path / "data"))
    CHANGES[change](root)
    assert read(source(root, tmp_path / "data")) != before
    assert len(copies(tmp_path / "data")) == 2


def test_another_size_is_another_copy(root, tmp_path):
    read(source(root, tmp_path / "data"))
    folder = image_folder.Folder(str(root), 4, ("cat", "dog"))
    assert datasets.open_split(datasets.Source(image_folder.NAME, tmp_path / "data", folder)).image_shape == (4, 4, 3)
    assert [name[:4] for name in copies(tmp_path / "data")] == ["4px-", "8px-"]


def test_a_run_finds_its_copy_though_the_folder_is_gone(root, tmp_path, caplog):
    folder = image_folder.refresh(source(root, tmp_path / "data").folder, tmp_path / "data")
    before = read(datasets.Source(image_folder.NAME, tmp_path / "data", folder))
    root.rename(root.with_name("away"))
    assert image_folder.refresh(folder, tmp_path / "data") == folder
    assert read(datasets.Source(image_folder.NAME, tmp_path / "data", folder)) == before
    with pytest.raises(UserError, match="there is no such folder"):
        image_folder.refresh(source(root, tmp_path / "data").folder, tmp_path / "data")
    with pytest.raises(UserError, match="there is no such folder"):
        image_folder.refresh(folder, tmp_path / "elsewhere")


def test_other_classes_than_the_runs_are_refused(root, tmp_path):
    fill(root, {"emu": 2})
    (root / "dog").rename(root.with_name("dog"))
    with pytest.raises(UserError, match="has other classes than the run: it lacks dog and adds emu; restore"):
        image_folder.refresh(source(root, tmp_path / "data").folder, tmp_path / "data")


@pytest.mark.parametrize(
    ("names", "told"), [(("dog", "cat"), "'dog', number 1"), (("cat", "dog", "dog"), "'dog', number 3")]
)
@pytest.mark.parametrize(("content", "fix"), [("", "omit it"), ("8px-0", "use another workdir")])
def test_classes_in_another_order_would_be_other_labels(names, told, content, fix, root, tmp_path):
    """A label is the position of its folder in sorted order, and class_names[label] is the name that users see."""
    folder = dataclasses.replace(source(root, tmp_path / "data", names).folder, content=content)
    with pytest.raises(UserError, match=f"repeats classes of .*, or is not in alphabetical order: {told}; {fix}"):
        image_folder.refresh(folder, tmp_path / "data")


def test_small_pictures_are_told(tmp_path, caplog):
    paint(tmp_path / "root" / "cat" / "small.png", 1, (7, 20))
    paint(tmp_path / "root" / "cat" / "large.png", 2, (8, 9))
    with caplog.at_level("INFO"):
        read_train = datasets.open_split(source(tmp_path / "root", tmp_path / "data", ("cat",))).load()
    assert len(read_train.labels) == 1
    assert "classes: 1; pictures: 1 for training, 1 for testing (held out)" in caplog.text
    assert "smaller than 8 pixels, so enlarged: 1 of the pictures" in caplog.text


SLOW = """
import sys, time
from dit_jax.data import datasets, image_folder, pictures
real = pictures.read_square
def slow(path, size):
    if sys.argv[3] == "slow" and path.name == "20.png":
        print("halfway", file=sys.__stdout__, flush=True)  # sys.stdout is kept quiet
        time.sleep(60)
    return real(path, size)
pictures.read_square = slow
folder = image_folder.Folder(sys.argv[1], 8, ("cat", "dog"))
print(datasets.open_split(datasets.Source("image_folder", sys.argv[2], folder)).count, flush=True)
"""


def preparing(root, data_dir, pace, **options):
    command = [sys.executable, "-c", SLOW, str(root), str(data_dir), pace]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.medium
def test_a_kill_leaves_nothing_half_made(root, tmp_path):
    """SIGKILL while pictures are being read; another process waits for the copy meanwhile, and then makes it."""
    data_dir = tmp_path / "data"
    first = preparing(root, data_dir, "slow")
    assert first.stdout.readline() == "halfway\n"
    second = preparing(root, data_dir, "quick", stderr=subprocess.PIPE)
    time.sleep(0.5)
    assert copies(data_dir) == []
    first.send_signal(signal.SIGKILL)
    first.communicate()
    counted, _ = second.communicate(timeout=120)
    assert counted == "40\n"
    assert len(copies(data_dir)) == 1
    assert not list(data_dir.rglob("*incomplete*"))


def test_a_damaged_copy_without_its_root_is_not_to_be_deleted(root, tmp_path):
    used = source(root, tmp_path / "data")
    read(used)
    used = dataclasses.replace(used, folder=image_folder.look(used.folder)[1])
    (image_folder.directory_of(used.folder, tmp_path / "data") / "features.json").unlink()
    with pytest.raises(UserError, match=r"is damaged .*: delete it \(`rm -r .*`\) and run the same command again"):
        datasets.open_split(used)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is damaged .*: it is the only copy, as data.root=.* is missing: restore one"):
        datasets.open_split(used)


@pytest.mark.parametrize("inside", ["", "below/it"])
def test_the_copy_must_not_lie_among_the_classes(root, inside):
    with pytest.raises(UserError, match=r"data.data_dir=.*the copy would lie within data.root=.*use another folder"):
        checks.check_folder(ConfigDict({"root": str(root), "data_dir": str(root / inside), "image_size": 8}))
    for beside in (root.parent, root / ".cache" / "below"):  # hidden folders are ignored
        checks.check_folder(ConfigDict({"root": str(root), "data_dir": str(beside), "image_size": 8}))


def test_a_full_disk_is_one_line_whoever_notices_it(root, tmp_path, monkeypatch):
    """Here ArrayRecord's writer notices it, and raises a RuntimeError."""

    def full(*_, **__):
        raise RuntimeError('Failed to finalize writing of split "train": write() failed: No space left on device')

    monkeypatch.setattr(image_folder.ImageFolder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"cannot write the data set to .*No space left on device.*another data_dir"):
        datasets.open_split(source(root, tmp_path / "data"), "train")
