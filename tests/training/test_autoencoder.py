"""Tests the autoencoder's loss with a network that records its input."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.autoencoder import AutoencoderOutput
from dit_jax.training.autoencoder import batch_loss
from dit_jax.training.step import Batch

B, SHAPE = 400, (2, 2, 3)


@pytest.fixture(scope="module")
def seen():
    """Returns x, eps, loss, (sums, counts) for a network that is off by 0.1 and whose latents' KL is 6 nats."""
    noted = {}

    def apply(params, x, eps):
        noted.update(x=np.asarray(x), eps=np.asarray(eps))
        return AutoencoderOutput(x + 0.1, jnp.full(len(x), 6.0))

    x_0 = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (B, 4, 4, 3))
    keys_B = jax.random.split(jax.random.key(0), B)
    labels = jnp.zeros(B, jnp.int32)
    batch = Batch(x_0, labels, keys_B, jnp.arange(B))
    loss, quarters = batch_loss(apply, True, SHAPE, 0.5, None, batch)
    return SimpleNamespace(**noted, loss=loss, quarters=quarters)


def test_the_loss_by_hand(seen):
    """0.1^2 + 0.5 * 6 nats / 48 values."""
    assert float(seen.loss) == pytest.approx(0.01 + 0.0625, rel=1e-4)
    sums, counts = (np.asarray(part) for part in seen.quarters)
    assert counts.tolist() == [B, 0, 0, 0]
    assert sums[0] / B == pytest.approx(float(seen.loss), rel=1e-5)


def test_half_of_the_images_are_mirrored(seen):
    mirrored = seen.x[:, 0, 0, 0] == 3
    assert 150 <= mirrored.sum() <= 250  # 200 expected, with a standard deviation of 10
    np.testing.assert_array_equal(seen.x[mirrored][0, 0, :, 0], [3, 2, 1, 0])


def test_each_latent_has_noise_of_its_own(seen):
    assert seen.eps.shape == (B, *SHAPE)
    assert len(np.unique(seen.eps.reshape(B, -1), axis=0)) == B
    assert seen.eps.mean() == pytest.approx(0, abs=0.06)  # 4,800 draws: four standard errors
    assert seen.eps.std() == pytest.approx(1, abs=0.05)
