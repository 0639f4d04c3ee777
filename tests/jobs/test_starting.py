"""`train.init_from`: a run that begins with the weights of another."""

import json
import shutil

import jax
import numpy as np
import pytest

from dit_jax.data import datasets
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.jobs import starting
from dit_jax.jobs.train import train
from dit_jax.loading import load
from dit_jax.settings import configs
from dit_jax.training.checkpoint import Checkpointer
from dit_jax.training.step import zero_sums
from tests import tiny
from tests.test_experiment import weights

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch, caplog):
    caplog.set_level("INFO", "dit_jax")
    tiny.install(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A workdir of a run whose averaged weights are as large as trained ones."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        experiment = tiny.experiment()
        return tiny.with_weights(tmp_path_factory.mktemp("source"), experiment, weights(experiment))


def begun(source, **more):
    """Returns (the first state of a run that begins with `source`'s weights, the averaged weights of `source`)."""
    state = starting.first_state(tiny.experiment(train__init_from=source, **more))
    return jax.device_get(state), jax.device_get(load(source).ema_params)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("more", [{}, {"train__shard_params": True, "train__batch_size": 16}])
def test_the_first_state_has_the_averaged_weights_and_a_fresh_optimizer(more, source, caplog):
    state, given = begun(source, **more)
    assert_same(state.params, given)
    assert_same(state.ema_params, given)
    assert int(state.step) == 0
    assert_same(state.opt_state, jax.device_get(tiny.experiment(**more).init_state().opt_state))
    assert "at step 6 (100.0%)" in caplog.text
    assert "another task" not in caplog.text


def test_weights_of_another_shape_begin_fresh_and_are_named(source, monkeypatch, caplog):
    """With four classes instead of three, only the class table has another shape."""
    info = datasets.DatasetInfo("four", (8, 8, 3), ("red", "green", "blue", "grey"))
    monkeypatch.setitem(datasets.DATASETS, "four", info)
    state, given = begun(source, data__name="four")
    flat = dict(jax.tree_util.tree_leaves_with_path(state.params))
    others = [path for path, leaf in jax.tree_util.tree_leaves_with_path(given) if leaf.shape != flat[path].shape]
    assert len(others) == 1
    assert flat[others[0]].shape == (5, 8)
    assert flat[others[0]].std() > 0.001
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        if path not in others:
            np.testing.assert_array_equal(flat[path], leaf)
    share = 1 - 5 * 8 / sum(leaf.size for leaf in flat.values())
    assert f"({np.floor(1000 * share) / 10:.1f}%, all but label/Embed_0/embedding)" in caplog.text
    assert "another task" not in caplog.text


def test_a_deeper_model_takes_the_blocks_that_are_there(source):
    state, given = begun(source, model__depth=2)
    shared = {name: state.params["params"][name] for name in given["params"]}
    assert_same(shared, given["params"])
    assert len(state.params["params"]) == len(given["params"]) + 1


def test_nothing_that_fits_is_refused(source):
    with pytest.raises(
        UserError, match=r"train.init_from=.*: none of its weights fit this model; use the model.\* keys"
    ):
        begun(source, model__width=32, model__class_table_width=16, model__patch_size=2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"diffusion__prediction": "v"}, "diffusion.prediction: eps -> v"),
        ({"diffusion__beta_end": 0.03}, "diffusion.beta_end: 0.02 -> 0.03"),
        ({"model__positions": "grid"}, "model.positions: mae -> grid"),
        ({"model__num_heads": 4, "model__num_kv_heads": 2}, "model.num_heads: 2 -> 4; model.num_kv_heads: 1 -> 2"),
        ({"data__name": "others"}, "its classes have other names, or another order"),
    ],
)
def test_weights_that_fit_and_mean_another_thing_are_told(more, words, source, monkeypatch, caplog):
    info = datasets.DatasetInfo("others", (8, 8, 3), ("cat", "dog", "emu"))
    monkeypatch.setitem(datasets.DATASETS, "others", info)
    begun(source, **more)
    assert f"was trained for another task ({words}): its weights will help less" in caplog.text


def test_how_the_other_run_would_be_sampled_does_not_matter(source, tmp_path, caplog):
    copy = shutil.copytree(source, tmp_path / "copy")
    theirs = configs.read(copy)
    theirs.sample.update(checkpoint="best", weights="raw", classifier_scale=1.0)
    configs.write(theirs, copy)
    _, given = begun(source)
    assert_same(starting.first_state(tiny.experiment(train__init_from=copy)).params, given)


def test_no_run_is_one_line_before_anything_is_made(tmp_path, capfd):
    flags = ["--workdir", tmp_path / "w", *tiny.flags(train__init_from=tmp_path / "none")]
    done = tiny.run_main(capfd, *flags)
    assert done.code == 2
    (line,) = done.err
    assert line.startswith(f"error: train.init_from={tmp_path / 'none'}: there is no run; use a workdir")
    assert not (tmp_path / "w").exists()


def test_a_run_whose_checkpoint_is_broken_is_one_line(source, tmp_path, capfd):
    copy = shutil.copytree(source, tmp_path / "other")
    for file in (copy / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    done = tiny.run_main(capfd, "--workdir", tmp_path / "w", *tiny.flags(train__init_from=tmp_path / "other"))
    assert done.code == 2
    assert done.err[-1].startswith(f"error: train.init_from={tmp_path / 'other'}: ")
    assert not any("Traceback" in line for line in done.err)


@pytest.mark.long
def test_a_run_learns_on_from_them_and_needs_them_once(source, tmp_path, monkeypatch):
    """Its first loss is that of the source's weights; a resumed run, without the source, equals a whole one."""
    tiny.on_devices(monkeypatch, 1)
    copy = shutil.copytree(source, tmp_path / "copy")
    begin = {"train__init_from": copy, "train__log_every": 1, "train__steps_per_call": 1}
    for folder, steps in (("whole", (6,)), ("parts", (2, 6))):
        for count in steps:
            if folder == "parts" and count == 6:
                shutil.rmtree(copy)
            train(tiny.config(**begin, train__steps=count), tmp_path / folder, None)
    assert_same(process_state(tmp_path / "parts"), process_state(tmp_path / "whole"))
    fresh = tmp_path / "fresh"
    train(tiny.config(**begin | {"train__init_from": ""}, train__steps=1), fresh, None)
    experiment = tiny.experiment()
    for folder, params in ((tmp_path / "whole", load(source).ema_params), (fresh, experiment.init_params())):
        call, _, *data = tiny.start(experiment)
        _, sums, _ = call(experiment.init_state(params), zero_sums(), *data, np.int32(1))
        loss = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        assert loss == pytest.approx(float(sums["loss"]), rel=1e-5)


def process_state(workdir):
    experiment = Experiment(tiny.config())
    with Checkpointer(workdir, 3, read_only=True) as checkpointer:
        return jax.device_get(checkpointer.restore(experiment.abstract_state()))


@pytest.mark.long
def test_the_autoencoder_and_the_classifier_of_such_a_run_begin_fresh(source):
    from dit_jax.companions.autoencoder import autoencoder_config
    from dit_jax.companions.classifier import classifier_config

    config = tiny.config(train__init_from=source)
    assert autoencoder_config(config).train.init_from == classifier_config(config).train.init_from == ""
