"""Evaluations while training: they do not change the run, however it is interrupted; the best checkpoint is kept."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from configs import default
from dit_jax import evaluations
from dit_jax.errors import UserError
from dit_jax.evaluation.features import Extractor
from dit_jax.jobs import training_evaluation
from dit_jax.jobs.judging import sampling_settings
from dit_jax.jobs.train import train
from dit_jax.jobs.train_classifier import train_classifier
from dit_jax.jobs.training_evaluation import TrainingEvaluation, first_features
from dit_jax.loading import load
from dit_jax.reporting.report_figures import SETTINGS
from dit_jax.training.checkpoint import Checkpointer
from tests import process, tiny
from tests.evaluation.test_evaluate import extract, summary
from tests.reporting.test_writer import scalars

EVERY_2 = {"evaluate__every_steps": 2, "train__keep_checkpoints": 1, "train__checkpoint_every": 3}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A workdir with a classifier of two steps and nothing else."""
    folder = tmp_path_factory.mktemp("with a classifier")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        train_classifier(tiny.config(), folder, None)
    return folder


@pytest.fixture
def make(classifier, tmp_path, monkeypatch):
    """Returns make(name), which creates a workdir with the classifier."""
    install(monkeypatch)
    return lambda name, source=classifier: shutil.copytree(source, tmp_path / name)


@pytest.fixture(scope="module")
def undisturbed(classifier, tmp_path_factory):
    """The workdir of six steps with evaluations at 2, 4 and 6."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        folder = shutil.copytree(classifier, tmp_path_factory.mktemp("undisturbed") / "run")
        assert train(tiny.config(**EVERY_2), folder, None) == 0
    return folder


def install(monkeypatch):
    """Installs the tiny data set, and one device, for which programs compile faster."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)


def rows(workdir):
    """Returns the rows of evaluations.jsonl without the seconds."""
    found = [json.loads(line) for line in (workdir / evaluations.NAME).read_text().splitlines()]
    assert all(row.pop("seconds") > 0 for row in found)
    return found


def metrics(workdir):
    """Returns the rows of metrics.jsonl without the speed."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in found]


def assert_same(workdir, expected):
    jax.tree.map(np.testing.assert_array_equal, process.final_state(workdir), process.final_state(expected))


@pytest.mark.long
def test_rows_say_what_they_depend_on_and_the_run_is_as_without(make, undisturbed):
    plain, found = make("plain"), rows(undisturbed)
    assert train(tiny.config(), plain, None) == 0
    assert_same(plain, undisturbed)
    assert not (plain / evaluations.NAME).exists()
    assert [row["step"] for row in found] == [2, 4, 6]
    told = {"during": "training", "images": 16, "epoch": 0.4, "n": 12, "sampler": "ddim", "steps": 3, "guidance": 1,
            "features": "classifier", "weights": "ema", "seed": 0, "reference_n": 40}  # fmt: skip
    assert {name: found[0][name] for name in told} == told
    assert {"accuracy_classifier", "kid_classifier", "recall_classifier", "features_sha256"} <= set(found[0])
    assert (found[0]["floor"]["split"], found[0]["floor"]["n"]) == ("test", 12)
    assert len({row["fd_classifier"] for row in found}) == 3
    drawn = scalars(undisturbed, "fd_classifier")
    assert drawn == [(row["step"], pytest.approx(row["fd_classifier"], rel=1e-6)) for row in found]
    assert metrics(undisturbed) == metrics(plain)
    # Batches of 8 of 40 images.
    assert [(row["images"], row["epoch"]) for row in metrics(plain)] == [(16, 2 / 5), (32, 4 / 5), (48, 6 / 5)]
    with pytest.raises(UserError, match=r"sample\.checkpoint=best: there was no evaluation in training"):
        load(plain, tiny.config(sample__checkpoint="best"))


@pytest.mark.long
def test_the_distance_is_that_of_the_mode_evaluate(make, undisturbed, capfd):
    """Both are computed from the same twelve images and the same real ones."""
    workdir = make("both", undisturbed)
    flags = ["--config.evaluate.n=12", "--config.sample.sampler=ddim", "--config.evaluate.loss_n=0"]
    done = tiny.run_main(capfd, "--mode=evaluate", "--workdir", workdir, *flags)
    assert done.code == 0, done.err
    ours, theirs = rows(workdir)[-2:]
    assert ours["fd_classifier"] == pytest.approx(theirs["fd_classifier"], rel=1e-9)
    assert ours["accuracy_classifier"] == theirs["accuracy_classifier"]
    assert (theirs["images"], theirs["epoch"]) == (48, 6 / 5)


@pytest.mark.long
def test_killed_in_an_evaluation_it_is_the_same_run(make, undisturbed, monkeypatch):
    """An exception stands in for a kill: it passes through everything, and nothing is done after it."""
    workdir, real = make("killed"), TrainingEvaluation.drawn

    def dying(self, state):
        yield from list(real(self, state))[:1]
        if int(state.step) == 4:
            raise RuntimeError("killed")

    monkeypatch.setattr(TrainingEvaluation, "drawn", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny.config(**EVERY_2, sample__batch_size=12), workdir, None)
    monkeypatch.setattr(TrainingEvaluation, "drawn", real)
    assert train(tiny.config(**EVERY_2), workdir, None) == 0
    assert_same(workdir, undisturbed)
    assert [row["step"] for row in rows(workdir)] == [2, 4, 6]
    assert rows(workdir)[1:] == rows(undisturbed)[1:]
    assert [row["step"] for row in metrics(workdir)] == [row["step"] for row in metrics(undisturbed)]


@pytest.mark.long
def test_asked_to_end_in_the_last_evaluation_it_is_saved_and_made_later(make, undisturbed, monkeypatch, caplog):
    caplog.set_level("INFO", logger="dit_jax")
    workdir, real = make("ended"), TrainingEvaluation.leave_if_asked

    def asked(self):
        if len(evaluations.of_training(workdir)) == 2:
            self.stop.code = 143
        real(self)

    monkeypatch.setattr(TrainingEvaluation, "leave_if_asked", asked)
    assert train(tiny.config(**EVERY_2), workdir, None) == 143
    assert "the evaluation at step 6 is postponed" in caplog.text
    assert 6 in process.checkpoints(workdir)
    assert [row["step"] for row in rows(workdir)] == [2, 4]
    monkeypatch.setattr(TrainingEvaluation, "leave_if_asked", real)
    assert train(tiny.config(**EVERY_2), workdir, None) == 0
    assert_same(workdir, undisturbed)
    assert rows(workdir) == rows(undisturbed)
    caplog.clear()
    assert train(tiny.config(**EVERY_2), workdir, None) == 0
    assert "has done all of its 6 steps" in caplog.text


@pytest.mark.long
def test_the_best_checkpoint_stays_and_can_be_sampled(make, monkeypatch, capfd):
    workdir, real, distances = make("best"), training_evaluation.scores, iter([5.0, 1.0, 9.0, 7.0])

    def scores(feature, reference, samples, names):
        figures = real(feature, reference, samples, names)
        is_floor = samples is not scores.samples
        return figures if is_floor else figures | {"fd_classifier": next(distances)}

    real_sum_up = TrainingEvaluation.sum_up

    def sum_up(self, images):
        scores.samples = real_sum_up(self, images)
        return scores.samples

    monkeypatch.setattr(training_evaluation, "scores", scores)
    monkeypatch.setattr(TrainingEvaluation, "sum_up", sum_up)
    assert train(tiny.config(**EVERY_2, train__steps=8), workdir, None) == 0
    assert process.checkpoints(workdir) == [4, 8]
    assert evaluations.best_step(workdir, process.checkpoints(workdir)) == 4
    here = partial(tiny.config, **EVERY_2, train__steps=8)
    steps = {name: load(workdir, here(sample__checkpoint=name)).step for name in ("newest", "best", "4", "8")}
    assert steps == {"newest": 8, "best": 4, "4": 4, "8": 8}
    ema, raw = (load(workdir, here(sample__weights=name)).weights for name in ("ema", "raw"))
    saved = process.final_state(workdir)
    jax.tree.map(np.testing.assert_array_equal, (ema, raw), (saved.ema_params, saved.params))
    gone = tiny.run_main(capfd, "--mode=sample", "--workdir", workdir, "--config.sample.checkpoint=6")
    assert gone.code == 2
    assert gone.err[0].startswith("error: sample.checkpoint=6: there is no checkpoint of that step; ")
    assert gone.err[0].endswith("checkpoints has 4, 8")


def test_without_what_it_needs_training_does_not_start(tmp_path, monkeypatch, capfd):
    tiny.install(monkeypatch)
    workdir = tmp_path / "bare"
    done = tiny.run_main(capfd, "--workdir", workdir, *tiny.flags(evaluate__every_steps=2))
    assert done.code == 2
    assert len(done.err) == 1
    assert "first run python main.py --mode=train_classifier" in done.err[0]
    assert not workdir.exists()
    monkeypatch.delenv("DIT_JAX_INCEPTION", raising=False)
    flags = tiny.flags(evaluate__every_steps=2, evaluate__features="inception")
    assert "--config.evaluate.features=classifier" in tiny.run_main(capfd, "--workdir", workdir, *flags).err[0]
    assert not workdir.exists()


def test_a_row_has_no_classifiers_scale_whatever_the_config_has(tmp_path, monkeypatch):
    """Training's samples are drawn without classifier guidance."""
    tiny.install(monkeypatch)
    experiment, extractor = tiny.experiment(sample__classifier_scale=2.0), Extractor("classifier", "", extract)
    monkeypatch.setattr(TrainingEvaluation, "real_sets", (summary(), summary()))
    monkeypatch.setattr(TrainingEvaluation, "sum_up", lambda self, images: summary())
    _, about = TrainingEvaluation(experiment, tmp_path, extractor, *[None] * 2).figures(2, experiment.abstract_state())
    assert about["classifier_scale"] == 0


def row(step, distance, **more):
    return {"step": step, "during": "training", "features": "classifier", "fd_classifier": distance, "n": 100} | more


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (3, [3, 6]), (0, [])])
def test_an_evaluation_is_owed_at_each_mark_and_at_the_end_until_there_is_one(every, steps, tmp_path, monkeypatch):
    tiny.install(monkeypatch)
    config = tiny.config(evaluate__every_steps=every, train__steps=6)
    for left in (steps, steps[1:]):
        assert [step for step in range(8) if training_evaluation.owed(config, tmp_path, step)] == left
        evaluations.append(tmp_path, row(steps[0] if steps else 6, 1.0))


def test_the_best_is_of_rows_made_alike(tmp_path):
    steps = range(10)
    assert evaluations.best_step(tmp_path, steps) is None
    for made in (row(1, 0.5, n=50), row(2, 3.0), row(3, 2.0), row(4, 2.5)):
        evaluations.append(tmp_path, made)
    evaluations.append(tmp_path, {"step": 9, "features": "classifier", "fd_classifier": 0.1, "n": 100})
    assert evaluations.best_step(tmp_path, steps) == 3
    evaluations.append(tmp_path, row(5, 4.0, n=50))
    assert evaluations.best_step(tmp_path, steps) == 1
    evaluations.append(tmp_path, row(6, 8.0, n=50, guidance_to=0.5))
    assert evaluations.best_step(tmp_path, steps) == 6


def test_the_best_is_of_those_whose_checkpoint_is_there(tmp_path, caplog):
    """A better one may be gone, by damage or while evaluations were of another kind: then another is best."""
    for made in (row(1, 0.5), row(2, 3.0), row(3, 2.0)):
        evaluations.append(tmp_path, made)
    for step in (2, 3, 4):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert evaluations.best_step(tmp_path, (2, 3, 4)) == 3
    assert evaluations.wanted_step(tmp_path, "best") == 3
    assert "step 1 was better, but its checkpoint is gone: step 3 is the best that is left" in caplog.text
    assert evaluations.wanted_step(tmp_path, "4") == 4
    with pytest.raises(UserError, match=r"sample.checkpoint=1: there is no checkpoint of that step; .* has 2, 3, 4"):
        evaluations.wanted_step(tmp_path, "1")
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step)).rmdir()
    with pytest.raises(UserError, match=r"best: the checkpoints evaluated in training are gone; .* has 4"):
        evaluations.wanted_step(tmp_path, "best")


def test_every_key_of_sampling_is_among_what_rows_must_agree_in():
    """So is the number of real images, which changes if a folder of pictures grows."""
    assert {*sampling_settings(default.get_config()), "n", "reference_n", "features_sha256"} - set(SETTINGS) == set()


def test_rows_beyond_a_step_are_dropped_and_nothing_else(tmp_path):
    path = tmp_path / evaluations.NAME
    kept = [row(2, 1.0), {"step": 9, "n": 3}, {"images": "a folder", "n": 4}]
    for made in (*kept, row(4, 1.0)):
        evaluations.append(tmp_path, made)
    with path.open("a") as file:
        file.write('{"step": 6, "during": "trai')  # a kill
    evaluations.append(tmp_path, row(3, 1.0))
    evaluations.drop_after(tmp_path, 3)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in (*lines[:3], lines[4])] == [*kept, row(3, 1.0)]
    before = path.stat().st_mtime_ns
    evaluations.drop_after(tmp_path, 3)
    assert path.stat().st_mtime_ns == before


@pytest.mark.medium
def test_checkpoints_that_are_kept(tmp_path, monkeypatch):
    tiny.install(monkeypatch)
    state, best = tiny.experiment().init_state(), [2]
    with Checkpointer(
        tmp_path, keep=2, best=lambda steps: max(step for step in steps if step <= best[0])
    ) as checkpointer:
        for step in range(1, 7):
            best[0] = 2 if step < 6 else 5
            checkpointer.save(dataclasses.replace(state, step=np.int32(step)), {}, {})
    assert process.checkpoints(tmp_path) == [5, 6]
    with Checkpointer(tmp_path, keep=2, read_only=True) as checkpointer:
        like = tiny.experiment().abstract_state()
        assert int(checkpointer.restore(like, 5).step) == 5
        assert checkpointer.restore(like, 4) is None


def test_classes_are_drawn_in_their_shares_of_the_training_images(monkeypatch):
    """The shares are 3 : 1 : 1."""
    tiny.install(monkeypatch)
    evaluation = TrainingEvaluation(tiny.experiment(evaluate__training_n=10), *[None] * 4)
    assert np.bincount(evaluation.labels).tolist() == [6, 2, 2]


def test_fewer_features_are_the_first_with_their_labels():
    few = first_features(summary(), 7)
    assert (few.features_ND.shape, few.labels_N.shape, few.count) == ((7, 2), (7,), 60)
    np.testing.assert_array_equal(few.features_ND, summary().features_ND[:7])
    assert first_features(summary(labels=None), 7).labels_N is None


def test_a_damaged_row_is_no_row(tmp_path):
    kept = row(2, 3.0)
    damaged = [{key: value for key, value in kept.items() if key != name} for name in ("features", "fd_classifier")]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*damaged, kept)))
    assert evaluations.of_training(tmp_path) == [kept]
    evaluations.drop_after(tmp_path, 0)
    assert evaluations.of_training(tmp_path) == []
