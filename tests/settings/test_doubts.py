"""Settings that are allowed with a warning, and settings that cause none."""

import logging
import math

import numpy as np
import pytest

from configs import default
from dit_jax.diffusion.schedule import make_schedule
from dit_jax.jobs import modes
from dit_jax.settings import configs
from dit_jax.settings.doubts import doubts
from dit_jax.settings.resolving import resolve
from tests import tiny


def told(mode, *assignments):
    config = default.get_config()
    configs.override(config, assignments)
    return "; ".join(doubts(resolve(config), mode))


@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize(
    "recipe", ["cifar10.py:report", "cifar10.py:best", "cifar10.py:cpu", "shapes.py", "shapes_latents.py"]
)
def test_no_recipe_of_ours_is_doubtful(recipe, mode):
    assert doubts(resolve(configs.load(f"configs/{recipe}")), mode) == []


def test_betas_of_1000_steps_with_fewer():
    """The sum of betas is T (1e-4 + 0.02) / 2, and log alpha about half of it: exp(-0.005 T), 0.61 for T = 100."""
    few = ("diffusion.num_steps=100", "sample.steps=50", "sample.spacing=trailing")
    alpha = np.prod(np.sqrt(1 - np.linspace(1e-4, 0.02, 100)))
    assert alpha == pytest.approx(math.exp(-0.005 * 100), abs=0.01)
    assert f"diffusion.num_steps=100: {alpha:.0%} of the image is left" in told("train", *few)
    assert f"timestep 99 of 0..99, where {alpha:.0%} of the image is expected" in told("sample", *few)
    scaled = ("diffusion.beta_start=0.001", "diffusion.beta_end=0.2")  # times 1000 / T
    assert told("train", *few, *scaled) == told("sample", *few, *scaled) == ""
    zero = ("diffusion.zero_terminal_snr=true", "diffusion.prediction=v")
    assert told("train", *few, *zero) == told("sample", *few, *zero) == ""


@pytest.mark.parametrize(("steps", "start"), [(1, 0), (501, 500), (2, 500)])
def test_a_spacing_that_begins_half_way(steps, start):
    line = told("sample", "sample.spacing=leading", f"sample.steps={steps}")
    alpha = make_schedule("linear", 1000, 1e-4, 0.02, False).alpha[start]
    assert f"timestep {start} of 0..999, where {alpha:.0%} of the image is expected; use sample.spacing=tr" in line
    assert told("sample", "sample.spacing=leading", "sample.steps=50") == ""  # DDIM's own spacing, from 980
    given = ("sample.task=image_to_image", "sample.images=pictures")
    assert told("sample", "sample.spacing=leading", f"sample.steps={steps}", *given) == ""


def test_heun_of_images_predicted_that_ends_far_from_where_it_was():
    """On the straight path of 1000 steps sigma is (t + 1) / 1000; 20 steps of linspace end at 53 and 0."""
    flow = ("diffusion.schedule=rectified", "sample.sampler=heun", "sample.steps=20")
    line = told("sample", *flow, "diffusion.prediction=x0")
    assert "the noise of its last two timesteps, 53 and 0, differs by a factor of 54" in line
    assert line.endswith("use sample.spacing=trailing")
    assert told("sample", *flow, "diffusion.prediction=velocity") == ""
    for spacing in ("trailing", "karras", "log_snr"):
        assert told("sample", *flow, "diffusion.prediction=x0", f"sample.spacing={spacing}") == ""
    assert told("sample", "diffusion.prediction=x0", "sample.sampler=heun", "sample.steps=1") == ""


def test_an_inversion_of_images_predicted_whose_first_step_is_far():
    task = ("sample.task=invert", "sample.images=x", "sample.sampler=ddim", "sample.guidance=1", "sample.steps=20")
    task = (*task, "diffusion.schedule=rectified", "diffusion.prediction=x0")
    line = told("sample", *task)
    assert line.startswith("sample.task=invert with sample.spacing=linspace: the noise of its last two timesteps")
    assert told("sample", *task, "sample.spacing=trailing") == ""


def test_guidance_where_no_step_goes():
    off = ("sample.guidance_from=0.9991", "sample.guidance_to=0.9999", "sample.steps=50")
    assert "sample.guidance=4.0 has no effect" in told("sample", "sample.guidance=4", *off)
    assert told("sample", "sample.guidance=1", *off) == ""
    assert "sample.classifier_scale=2.0 has no effect" in told("sample", "sample.classifier_scale=2", *off)
    assert told("sample", "sample.guidance=4", "sample.guidance_from=0.2", "sample.guidance_to=0.8") == ""


def test_a_warm_up_beyond_the_end():
    assert "optimizer.warmup_steps=50 is above train.steps=40" in told(
        "train", "optimizer.warmup_steps=50", "train.steps=40"
    )
    assert told("train", "optimizer.warmup_steps=40", "train.steps=40") == ""


@pytest.mark.medium
def test_a_user_reads_them(tmp_path, monkeypatch, caplog):
    tiny.install(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="dit_jax"):
        modes.run("train", tiny.config(**{"train.steps": 2}), tmp_path, None, None)
    assert "warning: diffusion.num_steps=20:" in caplog.text


def test_a_judge_that_guides():
    guided = "sample.classifier_scale=2"
    assert "also judges them" in told("evaluate", guided, "evaluate.features=classifier")
    assert told("evaluate", guided, "evaluate.features=inception") == told("sample", guided) == ""
