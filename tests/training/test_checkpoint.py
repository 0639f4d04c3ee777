"""Checkpoints hold exactly the state that was saved, on any mesh, and damage to one costs only that one."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.errors import UserError
from dit_jax.training import checksums, sharding
from dit_jax.training.checkpoint import Checkpointer, abstract
from dit_jax.training.state import TrainState, create
from tests import tiny
from tests.training.toy import Trainer, init_params

ADAMW = optax.adamw(0.01)


def ballast():
    """Returns parameters of a few megabytes: writing them takes longer than the steps that follow."""
    return init_params() | {"unused": {"kernel": jnp.ones((1000, 1000))}}


def like(devices=8, params=init_params):
    state = jax.eval_shape(lambda: create(params, ADAMW))
    return abstract(state, sharding.replicated(tiny.mesh(devices)))


def save(folder, *steps, keep=5):
    """Saves states in which every number is the step."""
    with Checkpointer(folder, keep) as checkpointer:
        for step in steps:
            state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, step, leaf.dtype), like())  # noqa: B023
            checkpointer.save(state, {"seed": 1}, {"loss": 0.5})


def restore(folder, only=None, **options):
    with Checkpointer(folder, 5, **options) as checkpointer:
        return checkpointer.restore(like(), only)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_reader_is_silent(tmp_path, caplog):
    """Orbax warns of a manager that is read-only."""
    save(tmp_path, 2)
    restore(tmp_path, read_only=True)
    assert not caplog.records


def test_a_file_server_that_does_not_answer_moves_no_workdir(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, 5) as checkpointer:
        stat = type(tmp_path).stat

        def stale(path, **options):
            if path == tmp_path:
                raise OSError(errno.ESTALE, "Stale file handle")
            return stat(path, **options)

        monkeypatch.setattr(type(tmp_path), "stat", stale)
        checkpointer.check()


@pytest.mark.parametrize("away", [lambda folder: folder.rename(folder.with_name("moved")), shutil.rmtree])
def test_a_workdir_that_is_moved_away_is_told_and_not_made_anew(away, tmp_path):
    folder = tmp_path / "run"
    with Checkpointer(folder, 5) as checkpointer:
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like())
        checkpointer.save(state, {}, {})
        checkpointer.check()
        checkpointer._manager.wait_until_finished()
        away(folder)
        for call in (
            checkpointer.check,
            lambda: checkpointer.save(dataclasses.replace(state, step=jnp.int32(2)), {}, {}),
        ):
            with pytest.raises(UserError, match="run was moved or removed while being written to"):
                call()
        assert not folder.exists()
        if (tmp_path / "moved").exists():  # otherwise the new folder may get the old one's inode
            folder.mkdir()
            with pytest.raises(UserError, match="was moved or removed"):
                checkpointer.check()
            assert not any(folder.iterdir())


@pytest.mark.medium
def test_a_save_is_the_state_of_its_moment_while_training_goes_on(tmp_path):
    trainer, saved = Trainer(ADAMW, 8, params=ballast), {}
    with Checkpointer(tmp_path, 5) as checkpointer:
        for _ in range(3):
            trainer.run(2)
            checkpointer.save(trainer.state, {}, {})
            trainer.run(4, 4)  # donates and overwrites its buffers while Orbax writes
    again = Trainer(ADAMW, 8, params=ballast)
    for _ in range(3):
        again.run(2)
        saved[int(again.state.step)] = jax.tree.map(np.array, again.state)
        again.run(4, 4)
    with Checkpointer(tmp_path, 5) as checkpointer:
        for step, expected in saved.items():
            assert_equal(checkpointer.restore(like(8, ballast), only=step), expected)


@pytest.mark.parametrize("devices", [1, 2])
def test_restore_on_another_number_of_devices(devices, tmp_path):
    save(tmp_path, 3)  # on one device
    with Checkpointer(tmp_path, 5) as checkpointer:
        state = checkpointer.restore(like(devices))
    assert int(state.step) == 3
    assert len(state.params["kernel"].sharding.device_set) == devices
    np.testing.assert_array_equal(state.params["kernel"], np.full((3, 3), 3.0))


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_the_newest_are_kept_with_config_and_metrics(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4"]
    assert json.loads(next((folder / "4" / "config").glob("metadata")).read_text()) == {"seed": 1}
    assert json.loads(next((folder / "4" / "scalars").glob("metadata")).read_text()) == {"loss": 0.5}


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


DAMAGE = {
    "everything empty": lambda folder: [p.write_bytes(b"") for p in files(folder)],
    "data cut in half": lambda folder: [p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]) for p in files(folder)],
    "tree lost": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "tree empty": lambda folder: (folder / "state" / "_METADATA").write_text("{}"),
    "state lost": lambda folder: shutil.rmtree(folder / "state"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_passed_over_and_saved_again(damage, tmp_path, caplog):
    save(tmp_path, 2, 4, 6)
    DAMAGE[damage](tmp_path / "checkpoints" / "6")
    DAMAGE[damage](tmp_path / "checkpoints" / "4")
    before = tiny.snapshot(tmp_path)
    assert int(restore(tmp_path, read_only=True).step) == 2
    assert tiny.snapshot(tmp_path) == before
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("dit_jax")]
    assert [f"checkpoints/{step} cannot be read" in line for step, line in zip((6, 4), warned, strict=True)] == [
        True
    ] * 2
    assert not any("\n" in line for line in warned)
    # Training goes on from 2; the damaged folders must not prevent its saves at 4 and 6.
    assert int(restore(tmp_path).step) == 2
    save(tmp_path, 4)
    assert int(restore(tmp_path).step) == 4
    save(tmp_path, 6)
    assert int(restore(tmp_path).step) == 6


def test_all_damaged_is_the_users_to_mend(tmp_path, caplog):
    save(tmp_path, 2, 4)
    for step in ("2", "4"):
        DAMAGE["everything empty"](tmp_path / "checkpoints" / step)
    before = tiny.snapshot(tmp_path)
    with pytest.raises(UserError, match=r"none of the checkpoints \[4, 2\] in .* can be read .*; restore"):
        restore(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read .*; use sample.checkpoint=newest or another"):
        restore(tmp_path, only=2)
    assert "skipped" not in caplog.text  # the error says it all in one line
    assert tiny.snapshot(tmp_path) == before


# TensorStore raises NO_HANDLES under `ulimit -n 16`; a file server on a soft mount causes ETIMEDOUT.
NO_HANDLES = ValueError("RESOURCE_EXHAUSTED: Error opening: Too many open files [os_error_code='24']")
LACKING = [MemoryError(), OSError(errno.EMFILE, "Too many open files"), NO_HANDLES, OSError(errno.ETIMEDOUT, "late")]


@pytest.mark.parametrize("error", LACKING, ids=str)
def test_what_the_machine_lacks_is_no_damage(error, tmp_path, monkeypatch):
    """Otherwise a start without enough memory would set the newest checkpoint aside and lose its latest steps."""
    save(tmp_path, 2, 4)
    before = tiny.snapshot(tmp_path)
    real = checksums.check

    def check(folder):
        if folder.name == "4":
            raise error
        real(folder)

    monkeypatch.setattr(checksums, "check", check)
    with pytest.raises(type(error)):
        restore(tmp_path)
    assert tiny.snapshot(tmp_path) == before


def test_a_folder_that_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, 2, 4)
    before, real = tiny.snapshot(tmp_path), os.scandir

    def scandir(path):
        if str(path).endswith("4/state"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="4/state"):
        restore(tmp_path)
    monkeypatch.undo()
    assert tiny.snapshot(tmp_path) == before


def test_a_checkpoint_of_another_model_is_named_and_left_alone(tmp_path, caplog):
    """The other model's kernel has another shape, or it has one more parameter."""
    save(tmp_path, 2, 4)
    before = tiny.snapshot(tmp_path)
    wider = like().params | {"kernel": jax.ShapeDtypeStruct((7, 9), jnp.float32)}
    for params, told in (
        (wider, r"kernel is \(.*\) there, \(7, 9\)"),
        (like(8, ballast).params, r"unused/kernel is none there, \(1000, 1000\)"),
    ):
        with (
            Checkpointer(tmp_path, 5) as checkpointer,
            pytest.raises(UserError, match=rf"checkpoints/4 .*{told} in the"),
        ):
            checkpointer.restore(TrainState(like().step, params, params, like().opt_state))
    assert tiny.snapshot(tmp_path) == before
    assert not [record for record in caplog.records if record.name.startswith("dit_jax")]


def test_an_unfinished_checkpoint_is_ignored_and_cleaned_up_by_training_alone(tmp_path):
    save(tmp_path, 2)
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", unfinished)
    assert int(restore(tmp_path, read_only=True).step) == 2
    assert unfinished.exists()
    assert int(restore(tmp_path).step) == 2
    assert not unfinished.exists()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut_a_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def stray(path):
    path.with_name("stray").write_text("")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_byte, remove, stray])
def test_the_smallest_damage_to_any_file_is_found(damage, tmp_path):
    """Damages each file in turn; without the checksums, Orbax restores some flipped bits as other weights."""
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints" / "3"
    checksums.check(folder)
    names = [p.relative_to(folder) for p in folder.glob("*/**/*") if p.is_file()]
    assert len(names) >= 10  # the state has several, config and scalars one each
    for name in names:
        other = tmp_path / "damaged"
        shutil.copytree(folder, other)
        damage(other / name)
        told = str(name.with_name("stray") if damage is stray else name)
        with pytest.raises(checksums.Damaged, match=f"^{re.escape(told)} (has changed|is missing|is not in SHA256)"):
            checksums.check(other)
        shutil.rmtree(other)


def test_a_hidden_file_of_a_file_manager_is_no_damage(tmp_path):
    save(tmp_path, 2, 4)
    for folder in (tmp_path / "checkpoints" / "4", tmp_path / "checkpoints" / "4" / "state"):
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / ".AppleDouble").mkdir()
        (folder / ".AppleDouble" / "manifest").write_bytes(b"x")
    assert int(restore(tmp_path).step) == 4


def test_a_reader_beside_a_trainer_looks_again(tmp_path, monkeypatch):
    """The only checkpoint is replaced by a newer one between the listing and the reading."""
    save(tmp_path, 2)
    with Checkpointer(tmp_path, keep=1, read_only=True) as reader:
        read = Checkpointer._read

        def late(self, step, like):
            if step == 2:
                shutil.rmtree(tmp_path / "checkpoints" / "2")
                save(tmp_path, 4)
            return read(self, step, like)

        monkeypatch.setattr(Checkpointer, "_read", late)
        assert int(reader.restore(like()).step) == 4


def test_a_flipped_bit_of_the_weights_is_named_and_the_older_checkpoint_used(tmp_path, caplog):
    save(tmp_path, 2, 4)
    flip_a_bit(max((tmp_path / "checkpoints" / "4" / "state").glob("**/d/*"), key=lambda p: p.stat().st_size))
    assert int(restore(tmp_path).step) == 2
    assert "checkpoints/4 cannot be read and is skipped: state/" in caplog.text
    assert "has changed since it was written" in caplog.text
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4.damaged"]


@pytest.mark.parametrize("damage", [flip_a_bit, half, remove, lambda path: path.write_bytes(b"\xff")])
def test_damaged_sums_are_damage(damage, tmp_path):
    """A checkpoint gets its name only after its checksums, so one without them was damaged later."""
    save(tmp_path, 2, 4)
    damage(tmp_path / "checkpoints" / "4" / checksums.NAME)
    assert int(restore(tmp_path).step) == 2


def test_the_sums_are_those_of_sha256sum(tmp_path):
    save(tmp_path, 3)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", checksums.NAME], cwd=tmp_path / "checkpoints" / "3"
    )
    assert done.returncode == 0


FULL = """
import resource, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from dit_jax.errors import UserError
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.state import TrainState
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the weights are 4 MB
how, folder = sys.argv[1:]
for step, size in ((1, 10), (2, 1_000_000)):
    weights = {"w": jax.random.normal(jax.random.key(0), (size,))}
    try:
        with Checkpointer(Path(folder), 3) as checkpointer:
            checkpointer.save(TrainState(jnp.int32(step), weights, weights, ()), {}, {})
            while how == "check" and step == 2:  # as at a log point
                checkpointer.check()
                time.sleep(0.01)
            if how == "save" and step == 2:
                checkpointer.save(TrainState(jnp.int32(3), weights, weights, ()), {}, {})
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("how", ["check", "save", "exit"])
def test_what_cannot_be_written_in_the_background_is_one_line_and_the_older_checkpoint_stays(how, tmp_path):
    """A limit on the file size stands in for a full disk: TensorStore's write fails in its thread just the same."""
    done = subprocess.run([sys.executable, "-c", FULL, how, tmp_path], capture_output=True, text=True, timeout=120)
    told = done.stdout.splitlines()
    assert told == [
        f"checkpoint {tmp_path}/checkpoints/2 cannot be written (File too large): fix that, and the same command "
        "resumes the run; earlier checkpoints are intact"
    ]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["1"]
    checksums.check(tmp_path / "checkpoints" / "1")


def test_a_folder_with_the_name_of_another_step_is_damage(tmp_path, caplog):
    """Although its checksums match, it would keep Orbax from saving any step below its name."""
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/9")
    assert restore(tmp_path).step == 2
    assert "checkpoints/9 cannot be read and is skipped: it holds the state of step 2" in caplog.text
    save(tmp_path, 3)
    assert restore(tmp_path).step == 3
    assert (tmp_path / "checkpoints/9.damaged").is_dir()


def test_a_save_that_orbax_leaves_out_is_told(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(UserError, match=r"checkpoints/3 is refused because 5 exists; move newer ones elsewhere"):
        save(tmp_path, 3)
