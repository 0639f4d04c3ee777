"""What a workdir must not lose: a run with another config, and the metrics of a run whose checkpoints are gone."""

import json
import shutil

import pytest

from dit_jax.settings import configs
from tests import tiny


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Returns run(*more_flags), which trains six steps in the workdir, or resumes there."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    return lambda *more: tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path / "run", *more)


@pytest.mark.long
def test_a_run_that_ended_before_it_began_may_have_another_config(run, tmp_path):
    """Such as one that ran out of memory while compiling, because of its batch: it leaves only a config.json."""
    assert run().code == 0
    for folder in ("checkpoints", "metrics.jsonl"):
        path = tmp_path / "run" / folder
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = run("--config.train.batch_size=4")
    assert done.code == 0, done.err
    assert "another config (train.batch_size: 4 -> 2)" in run("--config.train.batch_size=2").err[-1]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("text", ['{"name": "x"}', '{"train": {"steps": 5}, "data": {}, "model": {"width": 4}}'])
def test_a_config_json_of_another_program_stays_as_it_is(text, begun, run, tmp_path):
    path = tmp_path / "run/config.json"
    (path.parent / ("checkpoints/1000" if begun else "")).mkdir(parents=True)
    path.write_text(text)
    done = run()
    assert (done.code, len(done.err)) == (2, 1)
    assert f"{path} belongs to another program; move it elsewhere, or use another workdir" in done.err[0]
    assert path.read_text() == text


@pytest.mark.medium
def test_metrics_alone_are_a_run(run, tmp_path):
    assert run("--config.train.checkpoint_every=6").code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "another config (train.batch_size: 8 -> 4)" in run("--config.train.batch_size=4").err[-1]
    assert run("--config.train.checkpoint_every=1").code == 0  # as after a kill before the first checkpoint


@pytest.mark.medium
def test_without_its_checkpoints_a_run_does_not_begin_again(run, tmp_path):
    assert run("--config.train.checkpoint_every=1").code == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_bytes()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    told = run("--config.train.checkpoint_every=1")
    assert told.code == 2
    assert "metrics.jsonl reaches step 6, but there is no checkpoint; restore" in told.err[-1]
    assert metrics.read_bytes() == before
    (tmp_path / "run" / "checkpoints").rmdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "unmounted")
    assert "is a link to a missing folder" in run().err[-1]


def test_a_step_beyond_any_number_is_told_as_it_stands(run, tmp_path):
    """As in a damaged row."""
    (tmp_path / "run").mkdir()
    configs.write(tiny.config(), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1' + 400 * "0" + "}\n")
    assert "metrics.jsonl reaches step 1000" in run().err[-1]


@pytest.mark.medium
def test_a_config_of_before_that_lacks_a_key_which_may_change_is_one_line(run, tmp_path):
    assert run().code == 0
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    del config["train"]["steps"]
    path.write_text(json.dumps(config))
    done = run("--config.optimizer.schedule=constant")
    assert done.code == 2
    assert f"{path}: the key train.steps is missing; add it, such as train.steps=6" in done.err[-1]


@pytest.mark.medium
def test_a_checkpoint_that_is_a_link_to_nowhere_is_told_before_training(run, tmp_path):
    assert run().code == 0
    newest = tmp_path / "run/checkpoints/6"
    shutil.rmtree(newest)
    newest.symlink_to(tmp_path / "gone")
    done = run()
    assert done.code == 2
    assert f"{newest} is a link to a missing folder; mount or create that folder" in done.err[0]
