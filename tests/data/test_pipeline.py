from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.data.pipeline import batch_indices, crop, epoch_orders, flip, steps_per_epoch, to_float


def read(first_step, count, n=23, batch=5, seed=0):
    """Returns the indices of `count` global batches in one dispatch that starts at `first_step`: [count, batch]."""
    return np.asarray(dispatch(jax.random.key(seed), jnp.int32(first_step), count, n, batch))


@partial(jax.jit, static_argnums=(2, 3, 4))
def dispatch(key, first, count, n, batch):
    orders = epoch_orders(key, first, count, n, batch)
    return jax.lax.map(lambda i: batch_indices(orders, first, first + i, batch), jnp.arange(count))


def test_an_epoch_has_whole_batches_only():
    assert [steps_per_epoch(*sizes) for sizes in ((20, 5), (23, 5), (24, 5), (5, 5))] == [4, 4, 4, 1]


def test_every_epoch_takes_each_example_once():
    epochs = read(0, 12, n=20, batch=5).reshape(3, 20)
    assert (np.sort(epochs, axis=1) == np.arange(20)).all()
    assert not (epochs == np.arange(20)).all(axis=1).any()  # shuffled
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (epochs[one] != epochs[other]).any()


def test_a_remainder_is_left_out_and_is_another_one_each_epoch():
    epochs = read(0, 40, n=23, batch=5).reshape(10, 20)
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs.min() == 0
    assert epochs.max() == 22
    left_out = {frozenset(range(23)) - set(epoch) for epoch in epochs}
    assert len(left_out) > 5
    assert set(epochs.ravel()) == set(range(23))


def test_seeds_give_other_orders():
    assert (read(0, 4) != read(0, 4, seed=1)).mean() > 0.5


@pytest.mark.medium
@pytest.mark.parametrize(("n", "batch"), [(20, 5), (23, 5), (5, 5)])
def test_the_batch_of_a_step_does_not_depend_on_the_dispatch(n, batch):
    """13 steps at once; one at a time; and in calls of 6, 1 and 6 that cross the epochs' ends."""
    whole = read(0, 13, n, batch)
    np.testing.assert_array_equal(np.concatenate([read(i, 1, n, batch) for i in range(13)]), whole)
    calls = [(0, 6), (6, 1), (7, 6)]
    np.testing.assert_array_equal(np.concatenate([read(*call, n, batch) for call in calls]), whole)


def test_enough_epochs_are_ready_from_any_first_step():
    """A dynamic slice out of range is clamped silently: the last row asked for must be there."""
    for n, batch in ((20, 5), (23, 5), (5, 5), (64, 1)):
        per_epoch = n // batch
        for count in (1, 2, per_epoch, per_epoch + 1, 3 * per_epoch + 2):
            shape = jax.eval_shape(
                lambda f, c=count, n=n, b=batch: epoch_orders(jax.random.key(0), f, c, n, b), 0
            ).shape
            for first in range(2 * per_epoch):
                assert shape[0] > (first + count - 1) // per_epoch - first // per_epoch


def test_late_steps_are_as_good_as_early_ones():
    """Step 10 million is within int32, and its epoch is still a permutation."""
    epoch = read(10_000_000, 4, n=20, batch=5)
    assert (np.sort(epoch.ravel()) == np.arange(20)).all()


def test_to_float_by_hand():
    out = to_float(jnp.array([0, 51, 102, 255], jnp.uint8))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, [-1, -0.6, -0.2, 1], rtol=1e-6)
    assert float(out[0]) == -1
    assert float(out[3]) == 1


def test_flip_mirrors_left_to_right_half_of_the_images_by_their_own_keys():
    n = 400
    x = np.random.default_rng(0).normal(size=(n, 2, 3, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    out = np.asarray(jax.jit(flip)(jnp.asarray(x), keys))
    mirrored = (out == x[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (out == x).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    np.testing.assert_array_equal(flip(jnp.asarray(x[7:9]), keys[7:9]), out[7:9])  # in any batch


def test_of_latents_that_come_as_both_flip_takes_what_it_would_make_of_the_images():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 4, 6, 2)).astype(np.float32))
    keys = jax.random.split(jax.random.key(3), 40)
    both = jnp.stack([x, x[:, :, ::-1]], 1)
    np.testing.assert_array_equal(jax.jit(flip)(both, keys), flip(x, keys))


def test_latents_are_float_already():
    x = np.array([-3.5, 0.25, 127.0], np.float32)
    np.testing.assert_array_equal(to_float(jnp.asarray(x)), x)


@pytest.mark.medium
def test_crop_moves_each_image_evenly_by_its_own_key_and_fills_with_grey():
    """Pixel (2, 3) of a 5 x 6 image is the only one that is not 0: its position shows the shift."""
    n, padding = 900, 1
    x = np.zeros((n, 5, 6, 2), np.float32)
    x[:, 2, 3] = [1, 2]
    keys = jax.random.split(jax.random.key(0), n)
    out = np.asarray(jax.jit(crop, static_argnums=2)(jnp.asarray(x), keys, padding))
    assert out.shape == x.shape
    assert (out.sum((1, 2)) == [1, 2]).all()
    _, rows, columns = np.nonzero(out[..., 0])
    moves, counts = np.unique(np.stack([rows - 2, columns - 3]), axis=1, return_counts=True)
    assert moves.T.tolist() == [[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100 * 8 / 9)
    np.testing.assert_array_equal(crop(jnp.asarray(x[7:9]), keys[7:9], padding), out[7:9])  # in any batch
    bright = np.asarray(crop(jnp.ones((n, 5, 6, 2)), keys, padding))
    assert (bright[rows == 1, -1] == 0).all()  # moved up: the last row is grey
