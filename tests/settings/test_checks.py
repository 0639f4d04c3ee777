"""Each value that cannot work is refused by one line with the key, the value and the fix."""

import pytest

from configs import default
from dit_jax.errors import UserError
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve

BAD = [
    ("model.patch_size=5", "must divide the size of the images, 32 x 32 pixels; use one of [1, 2, 4, 8, 16, 32]"),
    ("model.num_heads=7", "must divide model.width=384"),
    ("model.num_kv_heads=3", "must divide model.num_heads=8; use one of [1, 2, 4, 8]"),
    ("model.width=0", "at least 1"),
    ("model.depth=-1", "at least 1"),
    ("model.conditioning=tokens", "choose one of token, adaln_zero"),
    ("model.positions=none", "choose one of mae, grid"),
    ("model.dtype=float16", "choose one of float32, bfloat16"),
    ("model.preset=DiT-XL", "DiT-XL/2"),
    ("data.name=cifar100", "shapes, cifar10"),
    ("data.root=pictures", "use data.name=image_folder"),
    ("data.image_size=0", "the images of data.name=cifar10 are 32 pixels wide"),
    ("data.image_size=64", "the images of data.name=cifar10 are 32 pixels wide"),
    ("data.skip_broken=True", "use false"),
    ("data.class_names=cat/dog", "only data.name=image_folder"),
    ("data.content=64px", "only data.name=image_folder"),
    ("data.resident=stream", "choose one of auto, true, false"),
    ("diffusion.num_steps=0", "use 1 to 10,000"),
    ("diffusion.num_steps=10001", "use 1 to 10,000"),
    ("diffusion.beta_start=0", "between 0 and 1"),
    ("diffusion.beta_end=1", "between 0 and 1"),
    ("diffusion.beta_end=-0.1", "between 0 and 1"),
    ("diffusion.beta_start=0.03", "not be above diffusion.beta_end=0.02"),
    ("diffusion.schedule=quadratic", "choose one of linear, cosine, sigmoid, rectified"),
    ("diffusion.prediction=epsilon", "choose one of eps, x0, v, velocity"),
    ("diffusion.min_snr_gamma=0", "above 0"),
    ("diffusion.loss_weighting=snr", "choose one of uniform, min_snr, velocity"),
    ("diffusion.loss_weighting=velocity", "use x0 or v"),
    ("diffusion.timestep_sampling=normal", "choose one of uniform, logit_normal"),
    ("diffusion.logit_std=0", "above 0"),
    ("diffusion.logit_mean=nan", "finite"),
    ("data.data_dir=", "set it to the folder of the data"),
    ("model.width=1000000000", "at most 65,536"),
    ("model.depth=100000", "at most 1,024"),
    ("model.mlp_ratio=1000", "at most 64"),
    ("train.dropout=1", "below 1"),
    ("train.dropout=-0.1", "use 0 (none)"),
    ("model.class_table_width=0", "at least 1"),
    ("optimizer.learning_rate=0", "above 0"),
    ("optimizer.learning_rate=-1", "above 0"),
    ("optimizer.learning_rate=nan", "finite"),
    ("optimizer.learning_rate=inf", "finite"),
    ("optimizer.learning_rate=1e+39", "float32 can hold"),
    ("optimizer.clip_norm=1e-46", "float32 can hold"),  # 0 in float32, which would clip everything to 0
    ("optimizer.b1=1", "below 1"),
    ("optimizer.b1=0.9999999999", "below 1"),  # 1 in float32
    ("optimizer.b2=-0.1", "use at least 0"),
    ("optimizer.weight_decay=-1", "use 0 (off)"),
    ("optimizer.clip_norm=-1", "use 0 (off)"),
    ("optimizer.warmup_steps=-1", "use 0 (off)"),
    ("optimizer.schedule=linear", "choose one of constant, cosine"),
    ("train.steps=0", "at least 1"),
    ("train.steps=99999999999", "between -2^31 and 2^31"),
    ("train.batch_size=0", "at least 1"),
    ("train.steps_per_call=0", "at least 1"),
    ("train.microbatches=0", "use 1 (off)"),
    ("train.steps_per_call=1000000", "use 1 to 10,000"),
    ("train.log_every=0", "at least 1"),
    ("train.checkpoint_every=-5", "at least 1"),
    ("train.keep_checkpoints=0", "at least 1"),
    ("train.max_bad_steps=0", "at least 1"),
    ("train.max_seconds=-1", "0 (no limit)"),
    ("train.sample_every=-1", "0 (never)"),
    ("train.label_dropout=1", "below 1"),
    ("train.ema_half_life=-1", "0 (no averaging)"),
    ("train.ema_ramp=0", "above 0"),
    ("sample.n=0", "at least 1"),
    ("sample.n=1000000000", "at most 22,369,621"),  # 2^36 bytes / (32 x 32 x 3)
    ("sample.mask=here.png", "sample.task=generate does not use a mask"),
    ("evaluate.n=9", "use 10 or more"),
    ("evaluate.n=2000000000", "use at most 10,000,000"),
    ("evaluate.training_n=2000000000", "use at most 10,000,000"),
    ("evaluate.features=vgg", "choose one of inception, classifier"),
    ("evaluate.every_steps=-1", "use 0 (never)"),
    ("evaluate.training_n=9", "use 10 or more"),
    ("evaluate.training_steps=0", "at least 1"),
    ("evaluate.training_sampler=euler", "choose one of ddpm"),
    ("evaluate.loss_n=-1", "use 0 (none)"),
    ("evaluate.broken_images=go", "choose one of stop, skip"),
    ("sample.checkpoint=last", "use newest, best, or the step"),
    ("sample.checkpoint=-1", "use newest, best, or the step"),
    ("sample.weights=averaged", "choose one of ema, raw"),
    ("classifier.width=12", "a multiple of 8"),
    ("classifier.width=0", "a multiple of 8"),
    ("classifier.depth=0", "at least 1"),
    ("classifier.depth=100000", "at most 1,024"),
    ("classifier.steps=0", "at least 1"),
    ("classifier.crop_padding=-1", "use 0 (none) to 31"),
    ("classifier.crop_padding=32", "less than the 32 pixels of the images"),
    ("classifier.batch_size=0", "at least 1"),
    ("classifier.learning_rate=0", "above 0"),
    ("classifier.weight_decay=-1", "use 0 (off)"),
    ("sample.batch_size=0", "at least 1"),
    ("sample.steps=1001", "use 1 to 1000"),
    ("sample.steps=0", "use 1 to 1000"),
    ("sample.sampler=euler", "choose one of ddpm, ddim, dpmpp_2m, heun"),
    ("sample.spacing=even", "choose one of linspace, leading, trailing, karras, log_snr"),
    ("sample.eta=1.5", "use 0 (no noise) to 1"),
    ("sample.eta=-0.5", "use 0 (no noise) to 1"),
    ("sample.eta=0.5", "sample.sampler=ddpm ignores it; use 0, or ddim"),
    ("sample.guidance_from=-0.1", "use a fraction of the timesteps"),
    ("sample.guidance_to=1.1", "use a fraction of the timesteps"),
    ("sample.guidance_from=1.0", "must be below sample.guidance_to=1.0"),
    ("sample.variance=learned", "choose one of small, large"),
    ("sample.guidance=-1", "use 0 (unconditional)"),
    ("sample.guidance=nan", "finite"),
    ("sample.labels=cat,whale", "there is no class 'whale'; the classes are 0 airplane, 1 automobile"),
    ("sample.labels=cat,,dog", "there is no class ''"),
    ("sample.labels=,", "there is no class ''"),
    ("sample.labels=10", "there is no class '10'"),
    ("sample.labels=-1", "there is no class '-1'"),
    ("sample.seed=-1", "2^32"),
    ("seed=4294967296", "2^32"),
]


def refused(*assignments):
    config = default.get_config()
    configs.override(config, assignments)
    with pytest.raises(UserError) as error:
        resolve(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("assignment", "fix"), BAD)
def test_a_bad_value_is_named_with_its_fix(assignment, fix):
    line = refused(assignment)
    key, _, value = assignment.partition("=")
    assert key in line
    assert value in line
    assert fix in line


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (("diffusion.schedule=rectified",), "diffusion.prediction=eps"),
        (("train.label_dropout=0", "sample.guidance=2"), "sample.guidance=2.0"),
        (("model.width=36", "model.num_heads=6", "model.num_kv_heads=4"), "use one of [1, 2, 3, 6]"),
        (("model.width=6", "model.num_heads=2"), "multiple of 4"),
        (("model.long_skips=true", "model.depth=2"), "no block lies between the two ends; use a depth of 3"),
        (("model.width=65536", "model.depth=1024"), "model.width=65536: with model.depth=1024 that is too large"),
        (("diffusion.num_steps=10",), "use 1 to 10"),
        (("diffusion.zero_terminal_snr=true", "diffusion.prediction=eps"), "diffusion.zero_terminal_snr=True reaches"),
        (("diffusion.zero_terminal_snr=true", "diffusion.num_steps=1"), "diffusion.num_steps=1 is too few"),
        (
            ("diffusion.prediction=v", "diffusion.beta_start=0.9", "diffusion.beta_end=0.95"),
            "diffusion.beta_start=0.9: the betas erase the image",
        ),
        (("sample.guidance_from=0.6", "sample.guidance_to=0.4"), "must be below sample.guidance_to=0.4"),
        (("sample.sampler=heun", "sample.eta=0.5"), "sample.sampler=heun ignores it"),
        (("sample.sampler=dpmpp_2m", "sample.eta=1"), "sample.sampler=dpmpp_2m ignores it"),
    ],
)
def test_a_combination_that_cannot_work(assignments, told):
    assert told in refused(*assignments)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid", "rectified"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_every_prediction_works_with_every_schedule_but_noise_with_pure_noise(schedule, zero, prediction):
    config = default.get_config()
    configs.override(config, [f"diffusion.schedule={schedule}", f"diffusion.prediction={prediction}"])
    config.diffusion.zero_terminal_snr = zero
    if prediction == "eps" and (zero or schedule == "rectified"):
        with pytest.raises(UserError, match="pure noise"):
            resolve(config)
    else:
        resolve(config)


def test_a_long_linear_schedule_that_ends_in_noise_has_a_fix_of_its_own():
    assert refused("diffusion.num_steps=3000").endswith("use velocity or v, or lower diffusion.beta_end")


def test_too_little_noise_for_a_predicted_image_has_one_too():
    """Of x_0 and x_t, eps is (x_t - alpha x_0) / sigma, and the first sigma is the root of the first beta."""
    told = refused("diffusion.prediction=x0", "diffusion.beta_start=1e-11")
    assert "t = 0 has too little noise to recover it (sigma = 3.2e-06); " in told
    assert told.endswith("; use velocity or v, or raise diffusion.beta_start")


@pytest.mark.parametrize(
    "assignments",
    [
        ("diffusion.num_steps=1", "sample.steps=1"),
        ("diffusion.num_steps=2", "sample.steps=2"),
        ("sample.sampler=ddim", "sample.eta=1"),
        ("train.steps=1", "train.batch_size=1"),
        ("train.label_dropout=0", "sample.guidance=1"),
        ("seed=4294967295",),
        ("train.sample_every=0", "optimizer.clip_norm=0", "train.ema_half_life=0"),
    ],
)
def test_extremes_that_work(assignments):
    config = default.get_config()
    configs.override(config, assignments)
    resolve(config)
