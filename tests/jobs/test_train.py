"""What a training job warns of before it trains."""

import pytest

from dit_jax.data import datasets
from dit_jax.jobs import train_classifier
from dit_jax.jobs.train import open_training_images, warn_of_many_epochs, warn_of_new_decay
from dit_jax.settings import configs
from tests import tiny


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "told"),
    [
        ("cosine", 4, 9, "train.steps: 6 -> 9 moves the end of the cosine schedule; from here on this is another run"),
        ("cosine", 4, 6, ""),
        ("cosine", 0, 9, ""),  # nothing was trained yet
        ("constant", 4, 9, ""),
    ],
)
def test_a_moved_end_of_the_cosine_rate_is_told(schedule, step, steps, told, tmp_path, monkeypatch, caplog):
    tiny.install(monkeypatch)
    configs.write(tiny.config(optimizer__schedule=schedule), tmp_path)  # of six steps
    warn_of_new_decay(tmp_path, tiny.config(optimizer__schedule=schedule, train__steps=steps), step, "train")
    assert [record.getMessage() for record in caplog.records] == ([told] if told else [])


@pytest.mark.parametrize(("count", "told"), [(64, False), (63, True)])
def test_a_thousand_epochs_are_not_warned_of_and_more_are(count, told, monkeypatch, caplog):
    """8,000 steps of 8 images are 1,000 epochs of 64, and 1,015 of 63."""
    tiny.install(monkeypatch)
    warn_of_many_epochs(tiny.config(train__steps=8000), count)
    assert ("8000 steps of 8 images are 1015 epochs of all 63, which a model may memorise" in caplog.text) == told


def test_a_run_of_many_epochs_is_warned_of_when_its_data_is_opened(tmp_path, monkeypatch, caplog):
    """8,000 steps of 8 images are 1,600 epochs of the 40 that there are."""
    tiny.install(monkeypatch)
    open_training_images(tiny.experiment(train__steps=8000), tmp_path)
    assert " 1600 epochs " in caplog.text


@pytest.mark.parametrize(("names", "told"), [(("all",), True), (("cat", "dog"), False)])
def test_a_classifier_of_one_class_is_warned_of(names, told, tmp_path, monkeypatch, caplog):
    tiny.install(monkeypatch)
    monkeypatch.setitem(datasets.DATASETS, "tiny", datasets.DatasetInfo("tiny", (8, 8, 3), names))
    monkeypatch.setattr(train_classifier, "run_training", lambda *given: 75)
    alone = {"train__label_dropout": 0.0, "sample__guidance": 1.0}
    assert train_classifier.train_classifier(tiny.config(**alone), tmp_path, None) == 75
    assert ("with one class, a classifier learns nothing" in caplog.text) == told
