"""report.html in a real browser: it renders, wide and narrow, light and dark, and requests nothing from elsewhere."""

import dataclasses
import json
import re

import numpy as np
import pytest

from dit_jax.data import datasets
from dit_jax.jobs.report import report
from dit_jax.reporting.denoising import strip
from dit_jax.reporting.images import save_png
from dit_jax.settings import configs
from tests import browser, tiny

pytestmark = [browser.needed, pytest.mark.medium]


NAMES = (
    "a class with a name that is as long as those of ImageNet, comma, or longer",
    "blue",
    "supercalifragilistic_" * 9,
)
SETTINGS = {"n": 10_000, "sampler": "dpmpp_2m", "spacing": "trailing", "steps": 20, "guidance": 1.5, "seed": 0}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run that was never trained, with every section, long names and many rows."""
    folder = tmp_path_factory.mktemp("run" * 40)
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch)
        patch.setitem(datasets.DATASETS, "tiny", dataclasses.replace(tiny.INFO, class_names=NAMES))
        config = tiny.config(train__steps=20_000)
        configs.write(config, folder)
        write(folder / "metrics.jsonl", [log_row(i, rng) for i in range(1, 400)])
        write(folder / "evaluations.jsonl", [evaluation(i) for i in (2_000, 8_000, 16_000)])
        write(folder / "sessions.jsonl", [{"step": 0, "command": "python main.py " + "--flag=value " * 40}])
        images = rng.integers(0, 256, (60, *tiny.INFO.image_shape), dtype=np.uint8)
        (folder / "samples").mkdir()
        np.savez(folder / "samples/samples.npz", images=images, labels=np.arange(60) % 3)
        moments = rng.integers(0, 256, (3, 9, 8, 8, 3), dtype=np.uint8)
        save_png(folder / "samples/denoising.png", strip(moments, moments, [*range(16, -1, -2)], ["a", "b", "c"]))
        report(config, folder, None)
    return (folder / "report.html").read_text()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def log_row(i, rng):
    losses = {name: rng.exponential() / i for name in ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4")}
    return {"step": 50 * i, "epoch": 10 * i, "images_per_s": 1234.5, **losses}


def evaluation(step):
    """Returns a row with figures of Inception and of the classifier, figures by class, and the loss by noise."""
    figures = {"fid": 1e4 / step, "inception_score": 7.5, "fd_classifier": 1e3 / step, "accuracy_classifier": 0.9}
    bins = {"t_from": [*range(0, 20, 2)], "t_to": [*range(2, 22, 2)], "loss": [1 / i for i in range(1, 11)]}
    bins |= {"images": 64, "split": "test"}
    by_class = {"fid_by_class": dict.fromkeys(NAMES, 12.5)}
    floor = figures | by_class | {"n": 10_000, "split": "test"}
    return {"step": step, "loss_by_noise": bins, "bits_per_dim": 3.9, "floor": floor, **figures, **by_class, **SETTINGS}


def luminance(color):
    """Returns the relative luminance of rgb(r, g, b). Source: WCAG 2.1."""
    values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    """Returns the contrast ratio, from 1 (none) to 21. Source: WCAG 2.1, which asks for 4.5."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("width", "more"), [(1200, ()), (400, ()), (1200, (browser.DARK,))])
def test_it_renders(page, tmp_path, width, more):
    seen, console = browser.look(page, tmp_path, width, *more)
    assert console == []
    assert seen["loaded"] == []
    assert seen["broken"] == 0
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["wide"] == []
    assert len(seen["images"]) > 30
    assert all(complete and natural > 0 for complete, natural, _ in seen["images"])
    assert {rendering for *_, rendering in seen["images"]} == {"pixelated", "auto"}  # auto: the strip contains text
    shown = [chart for chart in seen["charts"] if chart > 0]
    assert len(shown) == 6  # the loss, four figures, the loss by noise: each in one of its two sizes
    assert min(shown) > 300
    assert (luminance(seen["background"]) < 0.05) == bool(more)
    assert min(contrast(seen["background"], seen[ink]) for ink in ("ink", "soft")) > 4.5


def test_it_opens_as_it_is(page, tmp_path):
    """With its own policy, which forbids every request and script."""
    path = tmp_path / "report.html"
    path.write_text(page)
    assert browser.console(browser.opened(path, tmp_path)) == []


def test_the_browser_tells_what_is_wrong(tmp_path):
    """Otherwise the tests above could not fail: a request, broken images, a broken link, an error, a line too wide."""
    page = """<!DOCTYPE html><body style="margin: 0"><img src="data:image/png;base64,AAAA"><a href="#nowhere">x</a>
        <img src="http://example.invalid/a.png"><div style="width: 900px">x</div>
        <script>console.error('it went wrong')</script></body>"""
    seen, console = browser.look(page, tmp_path, 400)
    assert seen["loaded"] == ["http://example.invalid/a.png"]
    assert [natural for _, natural, _ in seen["images"]] == [0, 0]
    assert seen["broken"] == 1
    assert seen["scroll"] == 900
    assert len(seen["wide"]) == 1
    assert any("it went wrong" in line for line in console)
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:\">"
    (tmp_path / "a.html").write_text(f"<!DOCTYPE html><head>{policy}</head>{page}")
    assert browser.console(browser.opened(tmp_path / "a.html", tmp_path)) != []
