"""Tests the mesh, and which batches split over it."""

import jax
import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.training import sharding
from tests import tiny


def test_the_mesh_has_all_devices_on_one_axis():
    mesh = sharding.make_mesh()
    assert mesh.shape == {"data": 8}
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize(("batch_size", "fix"), [(12, 8), (7, 8), (0, 8), (-8, 8), (31, 24)])
def test_a_batch_that_does_not_split(batch_size, fix):
    with pytest.raises(UserError, match=f"train.batch_size={batch_size} .* 8 devices.* such as {fix}$"):
        sharding.check_batch(batch_size, tiny.mesh(8), "train.batch_size")


@pytest.mark.parametrize(("batch_size", "devices"), [(8, 8), (24, 8), (1, 1), (6, 2)])
def test_a_batch_that_splits(batch_size, devices):
    sharding.check_batch(batch_size, tiny.mesh(devices), "train.batch_size")


@pytest.mark.parametrize(("batch_size", "microbatches"), [(8, 2), (24, 2), (24, 9), (16, 4)])
def test_microbatches_that_do_not_divide_a_devices_images(batch_size, microbatches):
    told = (
        rf"^train.microbatches={microbatches} does not divide the {batch_size // 8} images per device .* use one of \[1"
    )
    with pytest.raises(UserError, match=told):
        sharding.check_batch(batch_size, tiny.mesh(8), "train.batch_size", microbatches)
    sharding.check_batch(batch_size * microbatches, tiny.mesh(8), "train.batch_size", microbatches)


def test_devices_hold_consecutive_disjoint_parts_of_the_batch():
    mesh = tiny.mesh(4)
    mapped = jax.shard_map(
        lambda: sharding.global_index(mesh, 12), mesh=mesh, in_specs=(), out_specs=sharding.SPLIT, check_vma=False
    )
    np.testing.assert_array_equal(mapped(), np.arange(12))
