"""Large images pass through the autoencoder a few at a time: memory is bounded, and the results are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.companions import autoencoder
from dit_jax.companions.autoencoder import AutoencoderExperiment, autoencoder_config, in_parts
from tests import tiny


@pytest.mark.parametrize(("count", "most", "sizes"), [(7, 8, [7]), (8, 8, [8]), (9, 8, [5]), (7, 2, [2]), (7, 1, [1])])
def test_all_come_back_in_order_in_equal_parts_of_at_most_so_many(count, most, sizes):
    seen = []

    def network(x):
        seen.append(len(x))
        return x * 2, x.sum((1, 2))

    x = jax.random.normal(jax.random.key(0), (count, 3, 2))
    twice, sums = in_parts(network, most, x)
    np.testing.assert_array_equal(twice, x * 2)
    np.testing.assert_allclose(sums, x.sum((1, 2)), rtol=1e-6)
    assert sorted(set(seen)) == sizes


@pytest.mark.long
def test_a_codec_gives_the_same_some_at_a_time(monkeypatch):
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    made = AutoencoderExperiment(autoencoder_config(tiny.config(model__latents=True, sample__clip_x_0=False)))
    params = jax.tree.map(lambda leaf: leaf + 0.01, made.init_params())
    x = jnp.asarray(tiny.split().images[:7] / 127.5 - 1, jnp.float32)
    found = []
    for at_once in (2**20, 3 * 8 * 8):
        monkeypatch.setattr(autoencoder, "AT_ONCE", at_once)
        codec = made.codec_of(params, [0.1, -0.2], [2.0, 0.5])
        z = jax.jit(codec.encode)(codec.weights, x)
        frames = jnp.stack([z, 2 * z], 1)
        program = jax.jit(codec.decode).lower(codec.weights, z).as_text()
        assert ("while" in program) == (at_once < 2**20)
        found.append((z, jax.jit(codec.decode)(codec.weights, z), jax.jit(codec.decode)(codec.weights, frames)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
    assert found[0][2].shape == (7, 2, 8, 8, 3)
