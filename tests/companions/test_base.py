"""What a run's companion networks take from its config."""

import numpy as np
import pytest

from dit_jax.companions.autoencoder import AutoencoderExperiment, autoencoder_config
from dit_jax.companions.classifier import ClassifierExperiment, classifier_config
from tests import tiny


@pytest.mark.parametrize(
    ("kind", "make"), [(ClassifierExperiment, classifier_config), (AutoencoderExperiment, autoencoder_config)]
)
def test_the_rate_rises_in_a_tenth_of_the_steps_and_falls_to_0_at_the_last(kind, make, monkeypatch):
    """Of its own steps, with its own peak; the rise takes at most 100. Half-way down, (1 + cos(pi / 2)) / 2 is left."""
    tiny.install(monkeypatch)
    for steps, warmup in ((40, 4), (4_000, 100)):
        own = {f"{kind.section}__steps": steps, f"{kind.section}__learning_rate": 0.5}
        rate = kind(make(tiny.config(**own))).learning_rate
        told = rate(np.array([0, warmup - 1, warmup, (warmup + steps) // 2, steps]))
        np.testing.assert_allclose(told, [0.5 / warmup, 0.5, 0.5, 0.25, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [classifier_config, autoencoder_config])
def test_what_a_run_alone_does_a_companion_does_not(make, monkeypatch):
    """It draws no samples, is not evaluated (it may be the judge), and takes its own batch whole, unsharded."""
    tiny.install(monkeypatch)
    of_run = dict(train__init_from="elsewhere", train__microbatches=4, train__batch_size=64, train__shard_params=True,
                  train__sample_every=3, evaluate__every_steps=5)  # fmt: skip
    made = make(tiny.config(**of_run))
    own = dict(init_from="", microbatches=1, batch_size=8, steps=2, shard_params=False, sample_every=0)
    assert {key: made.train[key] for key in own} == own
    assert made.evaluate.every_steps == 0
