"""Streamed runs are bitwise equal to resident runs, on any mesh, from any step, and with calls of any length."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from dit_jax.data.stream import Reader, batches
from dit_jax.errors import UserError
from dit_jax.jobs import train as job
from dit_jax.training import sharding
from dit_jax.training.feed import Stream
from tests import process, tiny


def reading_threads():
    """Returns Grain's threads that do not end within five seconds."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("grain")]
    for thread in threads:
        thread.join(timeout=5)
    return [thread for thread in threads if thread.is_alive()]


def train(workdir, resident, devices, monkeypatch, **more):
    """Returns the final state of a tiny run."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, devices)
    assert job.train(tiny.config(data__resident=resident, **more), workdir, None) == 0
    return process.final_state(workdir)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


LONG = {"train__steps": 13, "train__steps_per_call": 3, "train__log_every": 4}  # 2.6 epochs of five steps


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 8])
def test_a_streamed_run_has_the_weights_of_a_resident_one(devices, tmp_path, monkeypatch):
    resident = train(tmp_path / "resident", "true", devices, monkeypatch, **LONG)
    assert_equal(train(tmp_path / "stream", "false", devices, monkeypatch, **LONG), resident)
    assert int(resident.step) == 13
    assert not reading_threads()


@pytest.mark.long
def test_a_streamed_run_that_is_resumed_reads_on_where_it_was(tmp_path, monkeypatch):
    """Trains seven steps, then the rest in calls of another length: once streamed, once resident."""
    whole = train(tmp_path / "whole", "false", 2, monkeypatch, **LONG)
    for resident in ("false", "true"):
        train(tmp_path / resident, "false", 2, monkeypatch, **LONG | {"train__steps": 7})
        rest = train(tmp_path / resident, resident, 2, monkeypatch, **LONG | {"train__steps_per_call": 5})
        assert_equal(rest, whole)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_batch_of_a_step_is_the_permutations_slice_on_any_mesh(devices):
    """40 examples in batches of 8: five steps per epoch. The order is computed with JAX directly."""
    key, mesh, data = jax.random.key(3), tiny.mesh(devices), tiny.split()
    stream = Stream(tiny.records(), key, 8, 4, 100, mesh)
    try:
        for step, stop in ((0, 4), (4, 7), (12, 13), (2, 4)):  # any step may come next
            images, labels = stream(step, stop)
            assert images.shape == (4, 8, 8, 8, 3)
            assert images.sharding.spec == sharding.SPLIT_STEPS
            assert {shard.data.shape[1] for shard in images.addressable_shards} == {8 // devices}
            for i in range(step, stop):
                order = np.asarray(jax.random.permutation(jax.random.fold_in(key, i // 5), 40))
                chosen = order[i % 5 * 8 :][:8]
                np.testing.assert_array_equal(images[i - step], data.images[chosen])
                np.testing.assert_array_equal(labels[i - step], data.labels[chosen])
    finally:
        stream.close()
    assert not reading_threads()


def test_a_process_reads_what_its_own_devices_hold():
    asked = []
    records = tiny.records()
    noted = dataclasses.replace(records, read=lambda i: asked.append(i) or records.read(i))
    positions = np.array([2, 3, 6, 7])  # held by the second and the fourth of four devices
    batch = batches(noted, jax.random.key(0), 8, positions)(0)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), 40))
    np.testing.assert_array_equal(asked, [order[positions]])
    np.testing.assert_array_equal(batch.images, tiny.split().images[order[positions]])


def test_a_reader_ends_its_threads_though_much_is_unread():
    reader = Reader(batches(tiny.records(), jax.random.key(0), 8, np.arange(8)), 10_000, ahead=50, threads=4)
    reader.batch(3)
    reader.close()
    assert not reading_threads()


@pytest.mark.medium
def test_a_batch_that_cannot_be_read_ends_the_run_in_one_line_with_its_checkpoints(tmp_path, monkeypatch, capfd):
    tiny.install(monkeypatch)
    records = tiny.records()
    reads = []

    def fails(indices):
        reads.append(indices)
        if len(reads) > 4:
            raise UserError("DIR is damaged (it was): delete that folder")
        return records.read(indices)

    broken = dataclasses.replace(records, read=fails)
    monkeypatch.setattr(tiny, "records", lambda split: broken)
    done = tiny.run_main(capfd, *tiny.flags(data__resident="false", train__steps=40), "--workdir", tmp_path)
    assert done.code == 2
    assert done.err[-1] == "error: DIR is damaged (it was): delete that folder"
    assert not reading_threads()
