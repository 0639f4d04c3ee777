"""Checkpoints hold exactly the state that was saved, on any mesh, and a damaged one costs no more than itself."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.errors import UserError
from dit_jax.training import sharding
from dit_jax.training.checkpoint import Checkpointer, abstract
from dit_jax.training.state import create
from tests import tiny
from tests.training.toy import Trainer, init_params

ADAMW = optax.adamw(0.01)


def ballast():
    """Parameters of some megabytes: writing them takes longer than the steps that follow."""
    return init_params() | {"unused": {"kernel": jnp.ones((1000, 1000))}}


def like(devices=8, params=init_params):
    state = jax.eval_shape(lambda: create(params, ADAMW))
    return abstract(state, sharding.replicated(tiny.mesh(devices)))


def save(folder, *steps, keep=5):
    """Checkpoints of states whose parameters are full of their step."""
    with Checkpointer(folder, keep) as checkpointer:
        for step in steps:
            state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, step, leaf.dtype), like())  # noqa: B023
            checkpointer.save(state, {"seed": 1}, {"loss": 0.5})


def restore(folder, **options):
    with Checkpointer(folder, 5, **options) as checkpointer:
        return checkpointer.restore(like())


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_save_is_the_state_of_its_moment_while_training_goes_on(tmp_path):
    trainer, saved = Trainer(ADAMW, 8, params=ballast), {}
    with Checkpointer(tmp_path, 5) as checkpointer:
        for _ in range(3):
            trainer.run(2)
            checkpointer.save(trainer.state, {}, {})
            trainer.run(4, 4)  # its buffers are donated, and written again, while Orbax writes
    again = Trainer(ADAMW, 8, params=ballast)
    for _ in range(3):
        again.run(2)
        saved[int(again.state.step)] = jax.tree.map(np.array, again.state)
        again.run(4, 4)
    with Checkpointer(tmp_path, 5) as checkpointer:
        for step, expected in saved.items():
            if step != max(saved):  # the newest comes out first: take the older ones' turn
                continue
            assert_equal(checkpointer.restore(like(8, ballast)), expected)
    for step in sorted(saved, reverse=True)[:-1]:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
        older = max(s for s in saved if s < step)
        with Checkpointer(tmp_path, 5) as checkpointer:
            assert_equal(checkpointer.restore(like(8, ballast)), saved[older])


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
    # Training goes on from 2, and what it saves at 4 and 6 must not be lost to the ruins.
    assert int(restore(tmp_path).step) == 2
    save(tmp_path, 4)
    assert int(restore(tmp_path).step) == 4
    save(tmp_path, 6)
    assert int(restore(tmp_path).step) == 6


def test_all_damaged_is_the_users_to_mend(tmp_path):
    save(tmp_path, 2, 4)
    for step in ("2", "4"):
        DAMAGE["everything empty"](tmp_path / "checkpoints" / step)
    before = tiny.snapshot(tmp_path)
    with pytest.raises(UserError, match=r"none of the checkpoints \[4, 2\] in .* can be read .*; restore"):
        restore(tmp_path)
    assert tiny.snapshot(tmp_path) == before


def test_an_unfinished_checkpoint_is_ignored_and_cleaned_up_by_training_alone(tmp_path):
    save(tmp_path, 2)
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", unfinished)
    assert int(restore(tmp_path, read_only=True).step) == 2
    assert unfinished.exists()
    assert int(restore(tmp_path).step) == 2
    assert not unfinished.exists()
