"""Data packed for a lent machine are restored exactly, in the layout that CIFAR-10's authors publish."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec, pack
from dit_jax.data import cifar10
from dit_jax.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "images",
    [
        RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8),  # every possible difference
        np.full((2, 4, 6, 3), 255, np.uint8),
        np.stack([np.full((5, 5, 3), (255, 0, 255), np.uint8), np.full((5, 5, 3), (0, 255, 0), np.uint8)]),
    ],
)
def test_images_come_back(images):
    np.testing.assert_array_equal(codec.decode(codec.encode(images), *images.shape[1:3]), images)


def test_the_predictor_by_hand():
    """From left, above and the corner between: an edge takes one of the neighbours, a slope is continued."""
    found = codec.foretell(*(np.array(values) for values in ([10, 3, 5], [20, 9, 6], [30, 1, 5])))
    assert found.tolist() == [10, 9, 6]  # corner above both: the lower; below both: the higher; 5 + 6 - 5


def test_smooth_images_become_small():
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    images = np.repeat(ramp[None, :, :, None], 50, axis=0).repeat(3, axis=3)
    assert len(codec.encode(images)) < images.size / 100


def test_halves_and_back_to_the_archive(tmp_path, monkeypatch):
    """Three records per file; the archive that is written has the records of the one that was read."""
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", 3)
    contents = {name: RNG.integers(0, 10, (3, 3073), dtype=np.uint8).tobytes() for name in pack.FILES}
    pack.write_archive(np.frombuffer(b"".join(contents.values()), np.uint8).reshape(-1, 3073), tmp_path)
    first, second = pack.pack(tmp_path, tmp_path / "carry")
    assert [first.name, second.name] == ["cifar10.0.xz", "cifar10.1.xz"]

    state, asked = tmp_path / "state", []
    monkeypatch.setattr(cifar10, "main", lambda argv: asked.append(argv) or 0)
    second.rename(tmp_path / second.name)
    assert not pack.unpack(tmp_path / "carry", state)  # one half is not enough, and is kept
    first.unlink()
    (tmp_path / second.name).rename(second)
    assert pack.unpack(tmp_path / "carry", state)
    archive = f"--archive={state}/cifar-10-binary.tar.gz"
    assert asked == [[archive, f"--data_dir={state}/data", "--allow_checksum_mismatch"]]
    assert cifar10.read_archive(state / "cifar-10-binary.tar.gz") == contents


@pytest.mark.parametrize("argv", [[], ["--archive=x", "--unpack=y", "--state=z"], ["--unpack=y"]])
def test_a_wrong_command_is_one_line(argv):
    with pytest.raises(UserError, match="--unpack and --state"):
        pack.main(argv)


def test_the_wheels_are_those_of_the_requirements():
    """A version that is carried is the pinned one."""
    pinned = {line.strip() for line in Path("requirements.txt").read_text().splitlines() if "==" in line}
    assert {name for name in pack.WHEELS if "==" in name} <= pinned


def test_a_call_that_would_carry_too_much_is_told_how_it_carries_less():
    assert pack.advice(64 << 20) == "a call with a half carries 67.1 MB of at most 67.1"
    assert "meanwhile exclude results/ with `git sparse-checkout set" in pack.advice((64 << 20) + 1)
    assert 0 < pack.tracked() < 64 << 20
