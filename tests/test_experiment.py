"""A trained run sampled as a library: image i of a seed is the same in any batch and on any mesh."""

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax import jobs
from dit_jax.errors import UserError
from dit_jax.experiment import load
from tests import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of four steps on one device."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, 1)
        jobs.train(tiny.config(train__steps=4), folder, None)
    return folder


def draw(workdir, monkeypatch, devices=1, n=7, batch_size=4, **more):
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, devices)
    run = load(workdir, tiny.config(sample__n=n, train__steps=4, **more))
    return jobs.draw_all(run, run.experiment.labels(), batch_size, 3)


@pytest.fixture(scope="module")
def reference(workdir):
    with pytest.MonkeyPatch.context() as patch:
        return draw(workdir, patch)


@pytest.mark.parametrize(("devices", "n", "batch_size"), [(1, 3, 3), (1, 7, 2), (8, 7, 7)])
def test_an_image_is_the_same_in_any_batch_and_on_any_mesh(devices, n, batch_size, workdir, reference, monkeypatch):
    images = draw(workdir, monkeypatch, devices, n, batch_size)
    assert images.shape == (n, 8, 8, 3)
    assert np.abs(images.astype(int) - reference[:n].astype(int)).max() <= 1
    assert len({image.tobytes() for image in reference}) == 7  # and it is not that all are alike


def test_the_importable_twin(workdir, reference, monkeypatch):
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    run = dit_jax.load(str(workdir))
    assert run.step == 4
    images = np.asarray(run.sample(run.ema_params, jax.random.key(3), [0, 1, 2, 0]))
    assert images.dtype == np.float32
    assert np.abs(np.clip(np.round((images + 1) * 127.5), 0, 255) - reference[:4]).max() <= 1
    later = np.asarray(run.sample(run.ema_params, jax.random.key(3), np.array([0, 0, 1, 2]), first=3))
    np.testing.assert_allclose(later[0], images[3], atol=1e-5)
    with pytest.raises(UserError, match="label 4 is out of range; the classes are 0 red"):
        run.sample(run.ema_params, jax.random.key(3), [0, 4])
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        dit_jax.lod  # noqa: B018


def test_the_ema_weights_are_not_the_parameters(workdir, monkeypatch):
    tiny.install(monkeypatch)
    run = load(workdir)
    fresh = run.experiment.init_params()
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), run.ema_params, fresh)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_an_unknown_workdir(tmp_path):
    with pytest.raises(UserError, match="no such folder; train first"):
        load(tmp_path / "nothing")
