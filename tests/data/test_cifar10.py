"""Tests `cifar10` with archives made here, in the published layout with three records per file.

Layout (https://www.cs.toronto.edu/~kriz/cifar.html): a record is 1 label byte, then 1024 red, 1024 green and 1024 blue
bytes, each plane row by row; six files and the class names lie in one folder.
"""

import gzip
import hashlib
import io
import shlex
import signal
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from dit_jax.data import cifar10, datasets
from dit_jax.errors import UserError

FOLDER = "cifar-10-batches-bin"
NAMES = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"  # the published one ends like this
BINARIES = [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
RECORDS = 3


def load(data_dir, split="train"):
    return datasets.open_split(datasets.Source("cifar10", data_dir), split).load()


def record(serial):
    """Returns record `serial` of 18: red grows down the rows, green along the columns, blue is the serial number."""
    red = [8 * row for row in range(32) for _ in range(32)]
    green = [7 * column for _ in range(32) for column in range(32)]
    return bytes([label_of(serial), *red, *green, *[10 * serial] * 1024])


def label_of(serial):
    return (serial * 3 + 1) % 10


def image_of(serial):
    image = np.empty((32, 32, 3), np.uint8)
    image[..., 0] = 8 * np.arange(32)[:, None]
    image[..., 1] = 7 * np.arange(32)[None, :]
    image[..., 2] = 10 * serial
    return image


def good_files():
    files = {
        name: b"".join(record(RECORDS * number + k) for k in range(RECORDS)) for number, name in enumerate(BINARIES)
    }
    return {f"{FOLDER}/{name}": content for name, content in ({"batches.meta.txt": NAMES} | files).items()}


def pack(path, files):
    """Writes {name: bytes, or a TarInfo without content} as a gzip-compressed tar archive."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def three_records_a_file(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path / "any-name.tar.gz", good_files())


@pytest.fixture
def run(tmp_path, capsys):
    """Returns a function that runs the command line on an archive and returns (exit status, captured output)."""

    def command(archive, *flags):
        status = cifar10.main(["--archive", str(archive), "--data_dir", str(tmp_path / "data"), *flags])
        return status, capsys.readouterr()

    return command


ALLOW = "--allow_checksum_mismatch"


def refused(run, archive):
    """Returns the only error line on stderr; asserts that nothing is left that looks prepared."""
    status, said = run(archive, ALLOW)
    lines = [line for line in said.err.splitlines() if "error:" in line]
    assert status == 2
    assert len(lines) == 1
    assert said.err.splitlines()[-1].startswith("error: ")
    assert not list(archive.parent.glob("data/cifar10/[!.]*"))
    return lines[0]


def test_exact_pixels_labels_and_ids(run, archive, tmp_path):
    status, _ = run(archive, ALLOW)
    assert status == 0
    builder = tfds.builder_from_directory(tmp_path / "data" / "cifar10" / "3.0.2")
    assert builder.info.features["label"].names == NAMES.decode().split()
    for split, first, count in (("train", 0, 15), ("test", 15, 3)):
        records = list(builder.as_data_source(split))
        assert {r["id"].decode() for r in records} == {f"{split}_{k:05d}" for k in range(count)}
        loaded = load(tmp_path / "data", split)
        for example, image, label in zip(records, *loaded, strict=True):
            serial = first + int(example["id"].decode().split("_")[1])
            assert label == example["label"] == label_of(serial)
            np.testing.assert_array_equal(image, image_of(serial))
            np.testing.assert_array_equal(example["image"], image_of(serial))


def test_records_have_the_features_of_tfds(run, archive, tmp_path):
    run(archive, ALLOW)
    official = tfds.builder("cifar10", data_dir=tmp_path / "official").info
    ours = tfds.builder_from_directory(tmp_path / "data" / "cifar10" / "3.0.2").info
    assert ours.full_name == official.full_name == "cifar10/3.0.2"
    assert repr(ours.features) == repr(official.features)


def test_the_order_of_members_does_not_matter(archive, tmp_path):
    turned = pack(tmp_path / "turned.tar.gz", dict(reversed(good_files().items())))
    assert cifar10.read_archive(turned) == cifar10.read_archive(archive)


def test_the_published_folder_entry_and_read_me_are_accepted(tmp_path):
    folder = tarfile.TarInfo(FOLDER)
    folder.type = tarfile.DIRTYPE
    extra = {FOLDER: folder, f"{FOLDER}/readme.html": b"<html>"}
    assert len(cifar10.read_archive(pack(tmp_path / "a.tar.gz", extra | good_files()))) == 6


def test_prepared_already(run, archive, tmp_path):
    run(archive, ALLOW)
    status, said = run(tmp_path / "no archive is needed now")
    assert status == 0
    assert "was already prepared" in said.out


def test_checksum_mismatch_is_refused_and_allowed_only_loudly(run, archive, tmp_path):
    status, said = run(archive)
    actual, published = cifar10.checksum_mismatch(archive).split("SHA-256 ")[1].split(", but the published archive ")
    assert status == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert actual in said.err
    assert published.endswith("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
    assert published in said.err
    assert ALLOW in said.err
    assert not (tmp_path / "data").exists()
    status, said = run(archive, ALLOW)
    assert status == 0
    assert "WARNING: CHECKSUM MISMATCH ACCEPTED" in said.err
    assert actual in said.err


def test_the_right_checksum_passes_silently(run, archive, monkeypatch):
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    published = types.SimpleNamespace(size=archive.stat().st_size, checksum=actual)
    monkeypatch.setattr(cifar10.Cifar10, "url_infos", {"url": published})
    status, said = run(archive)
    assert status == 0
    assert "WARNING" not in said.err


def test_missing_archive_folder_as_archive_and_unknown_flag(run, tmp_path, capsys):
    assert "nowhere.tar.gz (No such file" in refused(run, tmp_path / "nowhere.tar.gz")
    (tmp_path / "folder").mkdir()
    assert "folder (Is a directory)" in refused(run, tmp_path / "folder")
    assert cifar10.main(["--data_dir", str(tmp_path), "--archiv", "x", "--chekcsum"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --chekcsum")


@pytest.mark.parametrize("name", ["batches.meta.txt", "data_batch_4.bin", "test_batch.bin"])
def test_missing_member(run, tmp_path, name):
    files = good_files()
    del files[f"{FOLDER}/{name}"]
    assert f"lacks {FOLDER}/{name}" in refused(run, pack(tmp_path / "a.tar.gz", files))


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_wrong_size_of_a_member(run, tmp_path, change):
    files = good_files()
    name = f"{FOLDER}/data_batch_2.bin"
    files[name] = (files[name] + record(0))[: len(files[name]) + change]
    message = refused(run, pack(tmp_path / "a.tar.gz", files))
    assert f"{3 * 3073 + change} bytes, not {3 * 3073}" in message


def test_label_out_of_range(run, tmp_path):
    files = good_files()
    content = bytearray(files[f"{FOLDER}/data_batch_5.bin"])
    content[2 * 3073] = 10
    files[f"{FOLDER}/data_batch_5.bin"] = bytes(content)
    assert "record 2 of data_batch_5.bin has label 10" in refused(run, pack(tmp_path / "a.tar.gz", files))


def test_other_class_names(run, tmp_path):
    files = good_files() | {f"{FOLDER}/batches.meta.txt": NAMES.replace(b"cat", b"cow")}
    assert "'cow'" in refused(run, pack(tmp_path / "a.tar.gz", files))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", f"{FOLDER}/../evil", f"{FOLDER}/sub/evil", "evil", "other/x"])
def test_member_outside_the_folder(run, tmp_path, name):
    message = refused(run, pack(tmp_path / "a.tar.gz", good_files() | {name: b"evil"}))
    assert "outside the folder" in message
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(run, tmp_path, kind):
    files = good_files()
    member = tarfile.TarInfo(f"{FOLDER}/data_batch_1.bin")
    member.type, member.linkname = kind, "/etc/passwd"
    files[member.name] = member
    assert "not a plain file" in refused(run, pack(tmp_path / "a.tar.gz", files))


def test_a_member_twice(run, tmp_path):
    files = good_files() | {f"./{FOLDER}/data_batch_1.bin": record(0) * RECORDS}
    assert "occurs twice" in refused(run, pack(tmp_path / "a.tar.gz", files))


def test_bomb(run, tmp_path):
    """50 MB of zeros packed into 50 kB, in a file that is only skipped: reading stops at the size of the real data."""
    files = {f"{FOLDER}/readme.html": bytes(50_000_000)} | good_files()
    bomb = pack(tmp_path / "bomb.tar.gz", files)
    assert bomb.stat().st_size < 100_000
    assert "unpacks to more" in refused(run, bomb)


def test_bomb_of_a_hole(run, tmp_path):
    """A sparse member, a few bytes that read as 600 MB of zeros (GNU tar's format 1.0)."""
    member = tarfile.TarInfo(f"{FOLDER}/batches.meta.txt")
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "600000000", "GNU.sparse.numblocks": "1"}
    assert "not a plain file" in refused(run, pack(tmp_path / "a.tar.gz", good_files() | {member.name: member}))


def test_a_list_of_names_that_is_none(run, tmp_path):
    files = good_files() | {f"{FOLDER}/batches.meta.txt": b"x" * (cifar10.SMALL_BYTES + 1)}
    assert "too many for ten names" in refused(run, pack(tmp_path / "a.tar.gz", files))


def test_a_header_that_is_no_header(run, tmp_path):
    member = tarfile.TarInfo(f"{FOLDER}/readme.html")
    member.pax_headers = {"GNU.sparse.map": "a,b"}
    assert "not a complete gzip" in refused(run, pack(tmp_path / "a.tar.gz", {"": member} | good_files()))


def test_bomb_in_a_header(run, tmp_path):
    """An extended header, which is held in memory as a whole, is bounded in the same way."""
    member = tarfile.TarInfo(f"{FOLDER}/readme.html")
    member.pax_headers = {"comment": "x" * 20_000_000}
    assert "unpacks to more" in refused(run, pack(tmp_path / "bomb.tar.gz", {"": member} | good_files()))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated(run, archive, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    assert "not a complete gzip-compressed tar" in refused(run, archive)


def test_damaged_bytes(run, archive):
    """Whichever byte is wrong, gzip's own checksum at the end shows it at the latest."""
    content = archive.read_bytes()
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 6):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        refused(run, archive)


@pytest.mark.parametrize(
    "content",
    [b"not an archive at all", gzip.compress(b"not a tar archive", mtime=0), b""],
    ids=["text", "gzip", "empty"],
)
def test_no_archive(run, tmp_path, content):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    assert "not a complete gzip-compressed tar" in refused(run, path)


def test_data_dir_is_a_file(archive, capsys):
    assert cifar10.main(["--archive", str(archive), "--data_dir", str(archive)]) == 2
    assert capsys.readouterr().err.startswith("error: data_dir must be a folder")


def test_a_data_dir_that_cannot_be_named(capsys):
    assert cifar10.main(["--data_dir", "x" * 300]) == 2
    assert capsys.readouterr().err.startswith("error: File name too long")


def test_the_command_can_be_copied():
    assert shlex.split(cifar10.command("my data", "a b.tar.gz"))[-3:] == ["a b.tar.gz", "--data_dir", "my data"]


def test_load_without_data_set_or_network_says_how_to_make_it(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", no_network)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"`python -m dit_jax.data.cifar10 --archive cifar-10-binary.tar.gz --data_dir {tmp_path}`" in message
    assert not list((tmp_path / "cifar10").glob("[!.]*"))


def test_load_takes_an_archive_placed_by_hand(tmp_path, monkeypatch):
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    placed = pack(tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz", good_files())
    with pytest.raises(UserError, match=rf"--archive {placed} --data_dir {tmp_path} {ALLOW}"):
        load(tmp_path)
    monkeypatch.setattr(cifar10, "checksum_mismatch", lambda archive: "")
    assert len(load(tmp_path).labels) == 15


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(run, archive, tmp_path):
    """SIGKILL in the middle of the training split; the same command then prepares everything."""
    code = (
        "import os, signal, sys; from dit_jax.data import cifar10, preparation; cifar10.RECORDS_PER_FILE = 3\n"
        "png, calls = preparation.png, []\n"
        "def killed(image):\n"
        "    calls.append(1)\n"
        "    return png(image) if len(calls) < 10 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "preparation.png = killed\n"
        "cifar10.main(sys.argv[1:])"
    )
    flags = ["--archive", str(archive), "--data_dir", str(tmp_path / "data"), ALLOW]
    process = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "data" / "cifar10" / "3.0.2").exists()
    assert run(archive, ALLOW)[0] == 0
    assert len(load(tmp_path / "data").labels) == 15


def test_the_command_as_typed(tmp_path):
    """A process of its own: exit status, one line, no traceback, no TensorFlow."""
    flags = ["--archive", "nowhere.tar.gz", "--data_dir", str(tmp_path)]
    command = [sys.executable, "-X", "importtime", "-m", "dit_jax.data.cifar10", *flags]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in process.stderr.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 2
    assert len(said) == 1
    assert said[0].startswith("error: cannot read the archive nowhere.tar.gz")
    assert not [line for line in process.stderr.splitlines() if line.split("|")[-1].strip() == "tensorflow"]
