"""Latents on disk: what is read back, what an interrupted encoding leaves, and one clear line for damage."""

import contextlib
import errno
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from dit_jax.data import latents
from dit_jax.data.datasets import Records, Split
from dit_jax.errors import UserError, errno_of, explain

COUNT, SHAPE = 23, (2, 3, 4, 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 5, COUNT).astype(np.int32)


def images(count=COUNT):
    read = lambda indices: Split(IMAGES[indices], LABELS[indices])  # noqa: E731
    return Records(count, IMAGES.shape[1:], read, lambda indices: LABELS[indices])


def known(batch):
    """Encodes each image as its first 24 values, scaled, and their negatives."""
    values = batch.reshape(len(batch), -1)[:, :24].astype(np.float32) / 7
    return np.stack([values, -values], 1).reshape(-1, *SHAPE)


def kept(folder, encode=known, batch_size=4, told=lambda done: None):
    latents.keep(images(), folder, latents.Encoder(encode, SHAPE, batch_size), told, lambda: None)
    return latents.open_kept(folder, COUNT, SHAPE)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Makes each file hold at most ten examples, so that there are three."""
    monkeypatch.setattr(latents, "PART_BYTES", 10 * 48 * 4 + 100)


def test_what_comes_back_is_what_was_encoded_in_the_order_of_the_data(tmp_path):
    told = []
    records = kept(tmp_path / "f", told=told.append)
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        f"0000{i}-of-00003.array_record" for i in range(3)
    ]
    assert told == [4, 8, 10, 14, 18, 20, 23]
    assert (records.count, records.image_shape, records.dtype) == (COUNT, SHAPE, np.float32)
    assert records.nbytes == COUNT * 48 * 4
    whole = records.load()
    np.testing.assert_array_equal(whole.images, known(IMAGES))
    np.testing.assert_array_equal(whole.labels, LABELS)
    assert (whole.images.dtype, whole.labels.dtype) == (np.float32, np.int32)
    some = np.array([22, 3, 10, 3])
    np.testing.assert_array_equal(records.read(some).images, known(IMAGES)[some])
    np.testing.assert_array_equal(records.read_labels(some), LABELS[some])
    assert latents.missing(tmp_path / "f", COUNT, SHAPE) == 0
    assert sum(path.stat().st_size > 0 for path in (tmp_path / "f").iterdir()) == 3


def test_a_batch_has_as_many_as_the_encoder_takes(tmp_path):
    sizes = []

    def encode(batch):
        sizes.append(len(batch))
        return known(batch)

    kept(tmp_path / "f", encode, batch_size=7)
    assert sizes == [7, 3, 7, 3, 3]


def test_an_encoding_that_ended_goes_on_with_the_part_it_was_at(tmp_path):
    seen = []

    def encode(batch):
        seen.extend(batch)
        if len(seen) > 15:
            raise KeyboardInterrupt
        return known(batch)

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "f", encode)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["00000-of-00003.array_record"]
    assert latents.missing(tmp_path / "f", COUNT, SHAPE) == 13
    seen.clear()
    told = []
    records = kept(tmp_path / "f", lambda batch: seen.extend(batch) or known(batch), told=told.append)
    np.testing.assert_array_equal(seen, IMAGES[10:])
    assert told[0] == 14
    np.testing.assert_array_equal(records.load().images, known(IMAGES))
    seen.clear()
    kept(tmp_path / "f", lambda batch: seen.extend(batch) or known(batch))
    assert not seen


def broken(path):
    for at in range(0, 3000, 61):  # what follows is padding
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[at] ^= 16
        path.write_bytes(flipped)
        yield
        path.write_bytes(whole)


def test_a_flipped_bit_is_told_or_does_no_harm(tmp_path):
    kept(tmp_path / "f")
    found, part = [], tmp_path / "f/00001-of-00003.array_record"
    for _ in broken(part):
        try:
            np.testing.assert_array_equal(latents.open_kept(tmp_path / "f", COUNT, SHAPE).load().images, known(IMAGES))
        except UserError as error:
            found.append(str(error))
    assert len(found) > 20
    for line in found:
        assert f"{part} is damaged" in line
        assert f"delete it (`rm -r {part}`) and run the same command again" in line


@pytest.mark.parametrize("damage", ["cut", "empty", "of others"])
def test_damage_is_one_line(damage, tmp_path):
    kept(tmp_path / "f")
    path = tmp_path / "f/00002-of-00003.array_record"
    if damage == "of others":
        path.write_bytes((tmp_path / "f/00001-of-00003.array_record").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: {"cut": 300, "empty": 0}[damage]])
    with pytest.raises(UserError, match="is damaged"):
        latents.open_kept(tmp_path / "f", COUNT, SHAPE).load()


@contextlib.contextmanager
def small_disk():
    """A limit on file sizes stands in for a full disk, for as short as possible, as pytest may print to a file."""
    before, on_excess = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, on_excess)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    told = f"cannot write latents to {tmp_path / 'f'} .*make room, or use another"
    with small_disk(), pytest.raises(UserError, match=told):
        kept(tmp_path / "f")
    assert not list((tmp_path / "f").iterdir())


def test_a_folder_that_may_not_be_written_is_told_with_its_path(tmp_path, monkeypatch):
    """Root may write anywhere, so `Path.touch` is patched to refuse."""

    def refuse(path, *rest, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError) as refused:
        kept(tmp_path / "f")
    code, line = explain(refused.value)
    assert (code, str(tmp_path / "f") in str(line)) == (2, True)


@pytest.fixture
def no_handles():
    """No more files can be opened; files that are open already are not affected."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_machine_without_file_handles_has_no_damaged_latents(tmp_path, request):
    kept(tmp_path / "f")
    request.getfixturevalue("no_handles")
    with pytest.raises(RuntimeError, match="Too many open files") as error:
        latents.open_kept(tmp_path / "f", COUNT, SHAPE)
    assert errno_of(error.value) == errno.EMFILE


def test_latents_that_may_not_be_read_are_not_damaged():
    """The messages are array_record's own."""
    error = RuntimeError("open() failed: Permission denied; opening /d/00000-of-00001.array_record; Failed to open")
    assert errno_of(error) == errno.EACCES
    assert explain(error)[0] == 2
    assert "Permission denied: open() failed" in str(explain(error)[1])
    assert errno_of(RuntimeError("chunk data hash mismatch; at byte 304")) is None


def test_a_file_where_the_folder_belongs_is_one_line(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match=f"{tmp_path / 'f'} is not a folder, but must be one; move it elsewhere"):
        kept(tmp_path / "f")
