"""Tests what the classifier sees in training, with a network that records its input."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.schedule import Schedule, make_schedule
from dit_jax.models.classifier import ClassifierOutput
from dit_jax.training.classifier import batch_loss
from dit_jax.training.step import Batch

pytestmark = pytest.mark.medium

B, K, T = 1600, 5, 20


@pytest.fixture(scope="module")
def seen():
    """x_t, t, loss and quarters, which are (sums, counts), of a batch of images that are 0.5 throughout."""
    schedule = make_schedule("rectified", T, 0.1, 0.2)
    noted = {}

    def apply(params, x_t, t_B):
        noted.update(x_t=np.asarray(x_t), t=np.asarray(t_B))
        return ClassifierOutput(jnp.zeros((B, 1)), jnp.zeros((B, K)))

    keys_B = jax.random.split(jax.random.key(0), B)
    x_0 = jnp.full((B, 4, 4, 3), 0.5)
    batch = Batch(x_0, jnp.zeros(B, jnp.int32), keys_B, jnp.arange(B))
    loss, quarters = batch_loss(apply, schedule, True, 0, None, batch)
    return SimpleNamespace(**noted, loss=loss, quarters=quarters)


def test_three_quarters_of_the_images_are_clean_and_have_t_0(seen):
    clean = np.all(seen.x_t == 0.5, axis=(1, 2, 3))
    assert 1130 <= clean.sum() <= 1270  # binomial: 1200 expected, standard deviation 17
    assert np.all(seen.t[clean] == 0)


def test_of_the_noisy_images_half_are_in_the_first_quarter_of_the_noise(seen):
    """A share sqrt(b) - sqrt(a) lies between a and b; for half of 400 images, 0.1 is four standard deviations."""
    t = seen.t[np.any(seen.x_t != 0.5, axis=(1, 2, 3))]
    assert set(t.tolist()) == set(range(T))
    shares = np.histogram(t, [0, 5, 10, 15, 20])[0] / len(t)
    np.testing.assert_allclose(shares, np.diff(np.sqrt([0, 0.25, 0.5, 0.75, 1])), atol=0.1)


def test_noise_is_as_loud_as_t_says(seen):
    """On the rectified schedule x_t = (1 - s) x_0 + s eps, with s = (t + 1) / T; an image has 48 values."""
    noisy = np.any(seen.x_t != 0.5, axis=(1, 2, 3))
    s = (seen.t[noisy] + 1) / T
    eps = (seen.x_t[noisy] - (1 - s)[:, None, None, None] * 0.5) / s[:, None, None, None]
    assert np.abs(eps.mean()) < 0.05
    assert eps.std() == pytest.approx(1, abs=0.05)


def test_a_network_that_knows_nothing_loses_the_log_of_the_classes(seen):
    assert float(seen.loss) == pytest.approx(np.log(K), rel=1e-5)
    sums, counts = (np.asarray(part) for part in seen.quarters)
    assert counts.sum() == B
    np.testing.assert_allclose(sums / counts, np.log(K), rtol=1e-5)


def test_half_of_the_images_are_mirrored_and_each_keeps_its_label():
    """The images are ramps with their label in the last channel; without noise, the network reads it: a loss of 0."""
    noted = {}

    def apply(params, x_t, t_B):
        noted.update(x_t=np.asarray(x_t))
        return ClassifierOutput(jnp.zeros((B, 1)), 100 * jax.nn.one_hot(x_t[:, 0, 0, 2].astype(int), K))

    schedule = Schedule(np.ones(T), np.zeros(T))
    labels, keys_B = jnp.arange(B) % K, jax.random.split(jax.random.key(0), B)
    x_0 = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (B, 4, 4, 3)).at[..., 2].set(labels[:, None, None])
    loss, _ = batch_loss(apply, schedule, True, 0, None, Batch(x_0, labels, keys_B, jnp.arange(B)))
    assert float(loss) == 0
    mirrored = noted["x_t"][:, 0, 0, 0] == 3
    assert 720 <= mirrored.sum() <= 880  # 800 expected, standard deviation 20
    np.testing.assert_array_equal(noted["x_t"][mirrored][0, 0, :, 0], [3, 2, 1, 0])


def test_crops_move_the_images():
    """Images that are 0.5 throughout move by -1, 0 or 1 pixels along each axis: one in nine keeps all of its pixels."""
    schedule, moved = make_schedule("rectified", T, 0.1, 0.2), []

    def apply(params, x_t, t_B):
        moved.append(np.asarray(x_t))
        return ClassifierOutput(jnp.zeros((B, 1)), jnp.zeros((B, K)))

    keys_B = jax.random.split(jax.random.key(0), B)
    x_0 = jnp.full((B, 4, 4, 3), 0.5)
    batch_loss(apply, schedule, False, 1, None, Batch(x_0, jnp.zeros(B, jnp.int32), keys_B, jnp.arange(B)))
    clean = np.isin(moved[0], [0, 0.5]).all((1, 2, 3))
    whole = (moved[0][clean] == 0.5).all((1, 2, 3)).mean()
    assert whole == pytest.approx(1 / 9, abs=0.08)
    assert set((moved[0][clean] == 0.5).all(-1).sum((1, 2)).tolist()) == {9, 12, 16}
