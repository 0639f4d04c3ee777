"""What is measured of an autoencoder, with codecs whose results NumPy can compute."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.jobs import train_autoencoder
from dit_jax.models.autoencoder import Codec
from tests import tiny

IMAGES = tiny.split().images


def test_all_images_are_measured_in_parts(monkeypatch):
    monkeypatch.setattr(train_autoencoder, "BATCH", 7)
    parts = list(train_autoencoder.measured(tiny.records(), "image"))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5]
    np.testing.assert_array_equal(np.concatenate(parts), IMAGES)


@pytest.mark.parametrize("limits", [{"MEASURED": 5, "BATCH": 2}, {"PIXELS": 5 * 64 + 1, "BATCH_PIXELS": 3 * 64 - 1}])
def test_of_many_images_some_are_measured_from_the_first_to_the_last(limits, monkeypatch):
    """Five of the 40 of 64 pixels each, two at a time: 0, 9.75, 19.5, 29.25 and 39, rounded down."""
    for name, value in limits.items():
        monkeypatch.setattr(train_autoencoder, name, value)
    parts = list(train_autoencoder.measured(tiny.records(), "image"))
    assert [len(part) for part in parts] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(parts), IMAGES[[0, 9, 19, 29, 39]])


def test_mean_deviation_and_psnr_are_of_all_values(monkeypatch, tmp_path):
    """Latents are every other pixel times 3; reconstructions are black."""
    monkeypatch.setattr(train_autoencoder, "BATCH", 7)
    codec = Codec(lambda w, x: w * x[:, ::2, ::2], lambda _, z: jnp.full((len(z), 8, 8, 3), -1.0), jnp.float32(3))
    about = train_autoencoder.statistics(codec, tiny.records())
    latents = 3 * (IMAGES[:, ::2, ::2] / 127.5 - 1)
    np.testing.assert_allclose(about["mean"], latents.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(about["std"], latents.std((0, 1, 2)), rtol=1e-5)
    again = train_autoencoder.reconstructed(codec, tiny.records(), tmp_path)
    assert again["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.square(IMAGES.astype(float)).mean()))
    assert (about["images"], again["psnr_n"]) == (40, 40)


def test_an_exact_reconstruction_has_no_psnr(monkeypatch, tmp_path):
    """It would be infinite, which JSON cannot say."""
    exact = Codec(lambda _, x: x, lambda _, z: z, jnp.float32(1))
    assert train_autoencoder.reconstructed(exact, tiny.records(), tmp_path)["psnr_db"] is None
