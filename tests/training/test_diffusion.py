"""Tests the draws of the diffusion loss, with a network that records its input; for training, see test_step.py."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.training.diffusion import batch_loss
from dit_jax.training.step import Batch
from tests.training.toy import OBJECTIVE


@pytest.fixture(scope="module")
def drawn():
    """Returns the draws and loss of one `batch_loss` for 400 latents of label 0: all 7, or all 90 if mirrored."""
    count, noted = 400, {}

    def network(params, x_t, t_B, labels_B, keys_B):
        noted.update(x_t=np.asarray(x_t), t=np.asarray(t_B), dropped=np.asarray(labels_B) == OBJECTIVE.null_class)
        return jnp.zeros_like(x_t)

    both = jnp.broadcast_to(jnp.array([7.0, 90.0])[None, :, None, None, None], (count, 2, 2, 2, 5))
    keys_B = jax.random.split(jax.random.key(0), count)
    batch = Batch(both, jnp.zeros(count, jnp.int32), keys_B, jnp.arange(count))
    loss, _ = batch_loss(network, OBJECTIVE, {}, batch)
    alpha, sigma = (table[noted["t"]][:, None, None, None] for table in OBJECTIVE.schedule)
    straight, mirrored = ((noted["x_t"] - value * alpha) / sigma for value in (7, 90))
    noted["mirrored"] = np.abs(mirrored).mean((1, 2, 3)) < np.abs(straight).mean((1, 2, 3))
    noted["eps"] = np.where(noted["mirrored"][:, None, None, None], mirrored, straight)
    return SimpleNamespace(**noted, loss=float(loss))


def test_latents_of_images_or_of_mirrored_ones_are_what_is_noised(drawn):
    assert 150 <= drawn.mirrored.sum() <= 250  # 200 expected, standard deviation 10
    assert drawn.eps.mean() == pytest.approx(0, abs=0.05)  # 8,000 draws: four standard errors
    assert drawn.eps.std() == pytest.approx(1, abs=0.05)
    assert drawn.loss == pytest.approx(np.square(drawn.eps).mean(), rel=1e-3)  # the prediction of the noise is 0


def test_an_images_time_noise_mirroring_and_dropped_label_know_nothing_of_each_other(drawn):
    """Correlations of 400 independent pairs are 0 +- 0.05; of draws from one key, say t and t < T / 4, above 0.7."""
    found = np.corrcoef([drawn.t, drawn.eps[:, 0, 0, 0], drawn.mirrored, drawn.dropped])
    np.testing.assert_allclose(found, np.eye(4), atol=0.2)
