"""main.py --mode=report: what a page shows of a run, and what it says about files that are missing or damaged."""

import base64
import dataclasses
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import default
from dit_jax.data import datasets
from dit_jax.errors import UserError
from dit_jax.jobs import report as job
from dit_jax.jobs.report_commands import commands_of, overrides
from dit_jax.reporting import report_images
from dit_jax.reporting.images import save_png
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from tests import tiny

pytestmark = pytest.mark.medium

SECTIONS = ["training-loss", "progress", "newest-evaluation", "loss-by-noise-level", "samples-by-class", "denoising",
            "nearest-training-images", "configuration", "how-it-was-made"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with the files of all modes."""
    return tiny.with_everything(tmp_path_factory.mktemp("a run & more"))


@pytest.fixture
def workdir(whole, tmp_path, monkeypatch):
    """A copy of it to modify, without the classifier, whose loading takes most of a page's time."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    return shutil.copytree(
        whole, tmp_path / "run", ignore=shutil.ignore_patterns("events.*", "classifier", "report.html")
    )


@pytest.fixture(scope="module")
def page(whole):
    """The page of the whole run; making it must change nothing else."""
    before = tiny.snapshot(whole)
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        tiny.on_devices(patch, 1)
        job.report(tiny.config(train__steps=4), whole, None)
    after = tiny.snapshot(whole)
    assert {path.name for path in set(after) - set(before)} == {"report.html"}
    assert all(after[path] == before[path] for path in before)
    return Page((whole / "report.html").read_text())


class Page(HTMLParser):
    """A parsed page: text by section, links, images."""

    def __init__(self, text):
        super().__init__()
        self.section, self.text, self.images, self.ids, self.links, self.tags = "head", {"head": ""}, [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag == "section":
            self.section = attributes["id"]
            self.text[self.section] = ""
        if tag == "img":
            self.images.append((self.section, attributes))

    def handle_data(self, data):
        self.text[self.section] += data


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))


def report(capfd, workdir, *flags):
    """Returns the page of a workdir, which must be made without an error."""
    done = tiny.run_main(capfd, "--mode=report", "--workdir", workdir, *flags)
    assert done.code == 0, done.err
    return Page((workdir / "report.html").read_text())


def test_a_whole_run(page):
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert not page.tags & {"script", "iframe", "object", "form"}
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} == set(SECTIONS)
    assert all(image["alt"] for _, image in page.images)
    assert "not finished" not in page.text["head"]
    for name in ("fd_classifier", "accuracy_classifier"):
        assert name in page.text["progress"]
        assert name in page.text["newest-evaluation"]
    for section in ("samples-by-class", "denoising"):
        assert "step 4, n 7, ddpm, 3 steps, linspace spacing, guidance 1, seed 0, EMA weights" in page.text[section]
    assert "8 x cpu" in page.text["how-it-was-made"].lower()
    assert "ema_half_life" in page.text["configuration"]
    assert "40 training images" in page.text["nearest-training-images"]
    assert "by features (classifier)" in page.text["nearest-training-images"]


def test_pictures_are_those_of_the_files(page, whole):
    with np.load(whole / "samples/samples.npz") as file:
        images, labels = file["images"], file["labels"]
    shown = [pixels(image) for section, image in page.images if section == "samples-by-class"]
    np.testing.assert_array_equal(np.stack(shown), images[np.argsort(labels, kind="stable")])
    (strip,) = (pixels(image) for section, image in page.images if section == "denoising")
    np.testing.assert_array_equal(strip, np.asarray(Image.open(whole / "samples/denoising.png")))


def test_samples_learnt_by_heart(workdir, capfd):
    """Two training images, one of them mirrored as training does, and noise: two of three ratios are 0."""
    train = tiny.split().images
    noise = np.random.default_rng(1).integers(0, 256, train[:1].shape, dtype=np.uint8)
    images = np.concatenate([noise, train[5:6], train[9:10, :, ::-1]])
    np.savez(workdir / "samples/samples.npz", images=images, labels=np.arange(3))
    page = report(capfd, workdir)
    text = page.text["nearest-training-images"]
    assert re.search(r"samples, by pixels\D*3\D*0\.000\D*0\.000\D*66\.7%\D*66\.7%", text)
    assert text.index("sample 1") < text.index("sample 2") < text.index("sample 0")
    assert "not recorded" in page.text["samples-by-class"]  # the grid beside them is of other samples
    near = [pixels(image) for section, image in page.images if section == "nearest-training-images"]
    np.testing.assert_array_equal(near[0], images[1])
    np.testing.assert_array_equal(near[1], train[5])
    np.testing.assert_array_equal(near[5], train[9])  # each sample is followed by its three nearest training images


def test_without_test_images_samples_have_neighbours_all_the_same(workdir, capfd, monkeypatch):
    real = datasets.open_split

    def train_alone(source, split):
        if split == "test":
            raise UserError("no picture is held out")
        return real(source, split)

    monkeypatch.setattr(datasets, "open_split", train_alone)
    text = report(capfd, workdir).text["nearest-training-images"]
    assert "samples, by pixels" in text
    assert "real test images, by" not in text
    assert "no ratios of unseen real images to compare with: no picture is held out." in text


def test_what_is_missing_is_said(workdir, capfd):
    """With the command that makes it; there are samples, but no record of how they were drawn."""
    for name in ("grid.png", "denoising.png"):
        (workdir / "samples" / name).unlink()
    for name in ("evaluations.jsonl", "evaluation.json", "sessions.jsonl"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "checkpoints")
    page = report(capfd, workdir)
    said = [
        ("samples-by-class", "not recorded", None),
        ("denoising", "no picture of the denoising yet", "sample"),
        ("nearest-training-images", "Distances by features are missing", "train_classifier"),
        ("progress", "No samples of this run have been evaluated", "evaluate"),
        ("loss-by-noise-level", "not been measured", "evaluate"),
        ("how-it-was-made", "not recorded", None),
    ]
    for section, words, mode in said:
        assert words in page.text[section]
        assert mode is None or f"python main.py --workdir {workdir} --mode={mode}" in page.text[section]


def test_a_run_that_has_just_begun(workdir, tmp_path, capfd):
    """A config and one row of a log, and nothing else."""
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(workdir / "config.json", bare)
    (bare / "metrics.jsonl").write_text('{"step": 2, "loss": 0.5}\n')
    page = report(capfd, bare)
    assert "not finished: the log is at step 2 of 4" in page.text["head"]
    assert f"python main.py --workdir {bare}" in page.text["head"]
    assert "16 images, the loss is 0.5000" in page.text["training-loss"]
    for section in ("progress", "newest-evaluation", "loss-by-noise-level", "samples-by-class", "denoising"):
        assert re.search("No sample|no evaluation|not been measured|no picture", page.text[section])


DAMAGE = {
    "metrics.jsonl": (b'{"step": 6, "lo', "metrics.jsonl: 1 line cannot be read"),
    "evaluations.jsonl": (b"\xff\xfe\n[1, 2]\n", "evaluations.jsonl: 2 lines cannot be read"),
    "sessions.jsonl": (b"no json\n", "sessions.jsonl: 1 line cannot be read"),
    "evaluation.json": (b"{", "evaluation.json cannot be read"),
    "evaluation_images.json": (b"\xff", "evaluation_images.json cannot be read"),
    "samples/denoising.png": (b"\x89PNG no picture", "denoising.png cannot be read"),
    "samples/grid.png": (b"", "How they were drawn is not recorded"),
    "classifier/config.json": (b"{", "Distances by features are missing"),
}


def test_damage_is_passed_over_with_a_word(workdir, capfd, caplog):
    whole = report(capfd, workdir)
    for name, (damage, _) in DAMAGE.items():
        path = workdir / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((path.read_bytes() if name.endswith("jsonl") else b"") + damage)
    page = report(capfd, workdir)
    for name, (_, said) in DAMAGE.items():
        assert said in " ".join(page.text.values()), name
        assert not name.endswith("jsonl") or said.removeprefix(f"{name}: ") in caplog.text
    for section in ("training-loss", "progress", "newest-evaluation"):  # the intact lines count as before
        assert page.text[section] == whole.text[section]
    (workdir / "samples/samples.npz").write_bytes(b"PK no archive")
    assert "The samples cannot be shown" in report(capfd, workdir).text["samples-by-class"]


def test_folders_where_files_belong_are_passed_over_with_a_word(workdir, capfd, caplog):
    names = ("evaluations.jsonl", "sessions.jsonl", "evaluation.json")
    for name in names:
        (workdir / name).unlink()
        (workdir / name).mkdir()
    page = report(capfd, workdir)
    for name in names:
        assert f"{name} cannot be read and is skipped" in " ".join(page.text.values())
        assert f"{workdir / name} cannot be read" in caplog.text
    assert "not recorded in its workdir" in page.text["how-it-was-made"]


def test_rows_of_odd_values_do_not_stop_it(workdir, capfd):
    odd = [None, "x", True, [], {}, float("nan"), float("inf"), -1, 0, 10**400]
    keys = ("loss", "loss_q1", "images", "epoch", "images_per_s", "bad_steps")
    lines = [{"step": i + 10, **dict.fromkeys(keys, value)} for i, value in enumerate(odd)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = ("n", "fid", "floor", "guidance", "sampler", "loss_by_noise", "bits_per_dim", "warning", "seed", "weights")
    lines = [{"step": i, **dict.fromkeys(keys, value)} for i, value in enumerate(odd)]
    lines += [{"step": value, "fid": 1.0, "floor": {"fid": value, "n": value}} for value in odd]
    lines += [{"images": value, "reference_n": value, "reference_split": "train"} for value in odd]
    (workdir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (workdir / "sessions.jsonl").write_text("".join(json.dumps({"step": v, "commit": v}) + "\n" for v in odd))
    shutil.rmtree(workdir / "samples")
    report(capfd, workdir)


def test_a_row_of_an_evaluation_is_none_of_the_loss(workdir, capfd):
    log = [{"step": 2, "images": 16, "loss": 0.75}, {"step": 4, "images": 32, "loss": 0.5}, {"step": 4, "fid": 3.0}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    shutil.rmtree(workdir / "samples")
    page = report(capfd, workdir)
    assert "training loss, last row0.5at step 4" in page.text["head"]
    evaluated = json.loads((workdir / "evaluation.json").read_text())
    assert f"at step {evaluated['step']}, real images" in page.text["head"]
    assert "from 2 rows" in page.text["training-loss"]


def test_what_files_say_stays_text(workdir, capfd, monkeypatch):
    evil = "<script>alert(1)</script>"
    renamed = dataclasses.replace(tiny.INFO, class_names=(evil, "<b>green", 'blue"'))
    monkeypatch.setitem(datasets.DATASETS, "tiny", renamed)
    rows = [{"step": 4, "sampler": evil, "n": 5, evil: 1.0, "fd_x": 1.0, "warning": evil, "floor": {"fd_x": 1.0}}]
    (workdir / "evaluations.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (workdir / "sessions.jsonl").write_text(json.dumps({"step": 0, "command": evil, "devices": evil}) + "\n")
    moved = workdir.rename(workdir.with_name("<i>run' & $(ls)"))
    page = report(capfd, moved)
    assert not page.tags & {"script", "b", "i"}
    assert evil in page.text["samples-by-class"]
    assert evil in page.text["how-it-was-made"]
    assert any(f"--workdir {shlex.quote(str(moved))}" in text for text in page.text.values())


def test_the_command_makes_the_same_config(page, whole, monkeypatch):
    """As the shell would read it."""
    tiny.install(monkeypatch)
    command = page.text["how-it-was-made"].partition("python main.py --config")[2].partition("python main.py")[0]
    words = shlex.split(command)
    made = default.get_config()
    configs.override(made, [word.removeprefix("--config.") for word in words if word.startswith("--config.")])
    assert configs.differences(configs.read(whole), resolve(made), ()) == []


@pytest.mark.parametrize(
    ("keys", "modes"),
    [
        ({}, ["train", "train_classifier", "sample", "evaluate"]),
        ({"evaluate__every_steps": 2}, ["train_classifier", "train", "sample", "evaluate"]),
        (
            {"model__latents": True, "sample__clip_x_0": False, "evaluate__every_steps": 2},
            ["train_autoencoder", "train_classifier", "train", "sample", "evaluate"],
        ),
        (
            {"evaluate__every_steps": 2, "evaluate__features": "inception"},
            ["train", "train_classifier", "sample", "evaluate"],
        ),
    ],
)
def test_each_command_has_what_the_ones_before_it_made(keys, modes, monkeypatch):
    """Sampling may be guided by the classifier, and training evaluated with it; all may need the autoencoder."""
    tiny.install(monkeypatch)
    commands = commands_of(tiny.config(**{"evaluate__features": "classifier"} | keys), Path("w"))["again"]
    named = re.findall(r"^python main.py (?:--workdir \S+ )?(?:--mode=(\w+))?", commands, re.MULTILINE)
    assert [mode or "train" for mode in named] == modes


def test_each_command_has_the_flags_that_its_files_were_made_with(whole, tmp_path, monkeypatch):
    """Only training keeps its flags in config.json."""
    tiny.install(monkeypatch)
    workdir = shutil.copytree(whole, tmp_path / "run")
    plain = configs.read(workdir)

    def later(rows):
        return commands_of(plain, workdir, rows)["again"].split("python main.py ")[2:]

    rows = [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]
    assert later(rows) == [
        f"--workdir runs/again --mode={mode}" + "\n" * (mode != "evaluate")
        for mode in ("train_classifier", "sample", "evaluate")
    ]
    configs.path_of(workdir / "classifier").write_text('{"classifier": null}')
    assert "--mode=train_classifier" in later(rows)[0]
    classifier = configs.read(whole / "classifier")
    classifier.classifier.steps, classifier.optimizer.learning_rate = 77, 5.0
    configs.write(classifier, workdir / "classifier")
    about = dict(plain.sample) | {
        "step": 4,
        "n": 3,
        "labels": "red, blue",
        "guidance": 2,
        "eta": None,
        "images_sha256": "",
    }
    save_png(workdir / "samples" / "grid.png", np.zeros((2, 2, 3), np.uint8), about)
    rows.append(rows[-1] | {"n": 21, "features": "inception", "seed": 5, "steps": 2, "warning": "none"})
    rows += [rows[-1] | {"during": "training", "n": 6}, {"images": "elsewhere", "n": 7, "features": "classifier"}]
    flags = [{word for word in shlex.split(line) if word.startswith("--config")} for line in later(rows)]
    assert flags == [
        {"--config.classifier.steps=77"},
        {"--config.sample.n=3", "--config.sample.labels=red, blue", "--config.sample.guidance=2"},
        {"--config.evaluate.n=21", "--config.evaluate.features=inception", "--config.sample.seed=5",
         "--config.sample.steps=2"},
    ]  # fmt: skip
    judged_by_it = configs.read(workdir)
    judged_by_it.evaluate.every_steps, judged_by_it.classifier.steps = 2, 55
    first, then = commands_of(judged_by_it, workdir, rows)["again"].split("python main.py ")[1:3]
    found = [
        [word for word in shlex.split(line) if word.startswith("--config.classifier.steps")] for line in (first, then)
    ]
    assert found == [["--config.classifier.steps=77"], ["--config.classifier.steps=55"]]


@pytest.mark.parametrize(
    "keys",
    [
        {"model__preset": "DiT-S/4", "data__name": "cifar10"},
        {"sample__labels": "red, blue's", "data__data_dir": "/a dir/$x", "data__flip": False},
        {"optimizer__learning_rate": 1e-05, "train__max_seconds": 0.1, "seed": 7},
    ],
)
def test_overrides_are_exact(keys, monkeypatch):
    tiny.install(monkeypatch)
    config = default.get_config()
    for key, value in keys.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    filled = config.copy_and_resolve_references()
    if "sample__labels" not in keys:
        filled = resolve(config)
    made = default.get_config()
    configs.override(made, [shlex.split(flag)[0].removeprefix("--config.") for flag in overrides(filled)])
    made = resolve(made) if "sample__labels" not in keys else made
    assert dict(configs.leaves(made)) == dict(configs.leaves(filled))


def test_with_out_the_page_goes_there_and_the_workdir_stays_as_it_is(workdir, tmp_path, capfd):
    shutil.rmtree(workdir / "samples")
    before = tiny.snapshot(workdir)
    out = tmp_path / "new" / "folder"
    done = tiny.run_main(capfd, "--mode=report", "--workdir", workdir, "--out", out)
    assert done.code == 0, done.err
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert tiny.snapshot(workdir) == before


def test_mistakes_are_one_line(workdir, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    without = {
        name: shutil.copytree(workdir, tmp_path / name.replace(".", "_")) for name in ("config.json", "metrics.jsonl")
    }
    for name, folder in without.items():
        (folder / name).unlink()
    silent = shutil.copytree(workdir, tmp_path / "silent")
    (silent / "metrics.jsonl").write_text("\n{}\nno json\n")
    mistakes = [
        ("no such folder", [tmp_path / "none"]),
        ("no config.json in it", [tmp_path / "empty"]),
        ("it is a file", [tmp_path / "file"]),
        ("has checkpoints but no config.json; restore it", [without["config.json"]]),
        ("metrics.jsonl has no rows yet", [without["metrics.jsonl"]]),
        ("nothing to report (metrics.jsonl: 1 line cannot be read and is skipped); restore", [silent]),
        ("it is a file; use a folder", [workdir, "--out", tmp_path / "file"]),
        ("another config (model.width: 16 -> 32)", [workdir, "--config.model.width=32"]),
        ("--mode=report does not use it", [workdir, "--images", tmp_path]),
    ]
    for told, arguments in mistakes:
        done = tiny.run_main(capfd, "--mode=report", "--workdir", *arguments)
        errors = [line for line in done.err if line.startswith("error: ")]
        assert done.code == 2
        assert len(errors) == 1
        assert told in errors[0]
        assert not (arguments[0] / "report.html").exists()


def test_pages_stay_small():
    """The worst case: pictures of noise, of more classes than are shown, also at the largest size kept lossless."""
    rng = np.random.default_rng(0)
    for size in (64, 256):
        images = rng.integers(0, 256, (250, size, size, 3), dtype=np.uint8)
        made = report_images.samples_section(images, np.arange(250) % 25, [f"class {i}" for i in range(25)], {})
        assert "the first 20 of 25 classes are shown" in made
        assert len(made) < 3_600_000
    noise = Image.fromarray(rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8))
    assert len(report_images.denoising_section(noise, {})) < 2_000_000
