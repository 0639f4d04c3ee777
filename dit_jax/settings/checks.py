"""Every rule that a config must keep, each with the error line that the user reads when it does not."""

import math
from collections.abc import Collection

import numpy as np
from ml_collections import ConfigDict

from dit_jax.data import image_folder
from dit_jax.data.datasets import DatasetInfo
from dit_jax.diffusion.objective import LOSS_WEIGHTINGS, PREDICTIONS, TIMESTEP_SAMPLING, solvable
from dit_jax.diffusion.sampling import SAMPLERS, VARIANCES
from dit_jax.diffusion.schedule import SCHEDULES, make_schedule
from dit_jax.diffusion.spacing import SPACINGS
from dit_jax.errors import UserError
from dit_jax.evaluation.evaluate import LEAST_IMAGES, NAMES
from dit_jax.models.autoencoder import DOWNSAMPLES, GROUPS
from dit_jax.models.classifier import GROUP_WIDTH
from dit_jax.models.dit import CONDITIONINGS, POSITIONS
from dit_jax.settings.configs import leaves
from dit_jax.settings.labels import parse_labels
from dit_jax.system.files import real
from dit_jax.training.optimizer import SCHEDULES as RATES

TASKS_WITH_IMAGES = ("invert", "image_to_image", "inpaint")
TASKS = ("generate", "interpolate", *TASKS_WITH_IMAGES)
TINY, HUGE = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
LARGEST = {"width": 2**16, "depth": 2**10, "mlp_ratio": 2**6, "class_table_width": 2**16}  # of a model; more is a typo
LARGEST_WEIGHTS = 2**36  # depth x width^2; 2,000 times that of DiT-XL, where it is 1/18 of the parameters
LARGEST_CALL = 10_000  # steps in one dispatch, which begins by drawing the order of all its epochs
LARGEST_EVALUATION = 10_000_000  # images; more is a typo
LARGEST_SAMPLES = 2**36  # bytes of uint8 pixels, which stay in memory until the file is written


def choice(key: str, value: str, known: Collection[str]) -> None:
    """Refuses a value that is not in `known`."""
    if value not in known:
        raise UserError(f"{key}={value} is not known; choose one of {', '.join(known)}")


def require(holds: bool, key: str, value: object, fix: str) -> None:
    """Refuses `key=value` unless `holds`; `fix` says what to do instead."""
    if not holds:
        raise UserError(f"{key}={value}: {fix}")


def check(config: ConfigDict, info: DatasetInfo) -> None:
    """Raises UserError for the first value that cannot work; builds and compiles nothing."""
    check_numbers(config)
    check_data(config.data, info)
    check_autoencoder(config, info)
    check_model(config.model, diffused_shape(config, info.image_shape))
    check_diffusion(config.diffusion)
    check_optimizer(config.optimizer)
    check_train(config.train)
    check_sample(config, info)
    check_evaluate(config.evaluate)
    check_classifier(config.classifier, info)
    require(bool(config.data.data_dir.strip()), "data.data_dir", "''", "set it to the folder of the data, such as data")
    require(0 <= config.seed < 2**32, "seed", config.seed, "use a whole number from 0 to 2^32 - 1")


def check_numbers(config: ConfigDict) -> None:
    """Refuses NaN, infinity, floats out of float32's range and, except for seeds, integers of 2^31 or more in size."""
    for key, value in leaves(config):
        if isinstance(value, float):
            held = value == 0 or TINY <= abs(value) <= HUGE
            require(held, key, value, "use a finite number that float32 can hold: 0, or 1.2e-38 to 3.4e38 in size")
        small = not isinstance(value, int) or key.endswith("seed") or abs(value) < 2**31
        require(small, key, value, "use a whole number between -2^31 and 2^31")


def check_data(c: ConfigDict, info: DatasetInfo) -> None:
    """Checks how the data are read, and that no key is set that the data set does not use."""
    choice("data.resident", c.resident, ("auto", "true", "false"))
    if c.name != image_folder.NAME:
        require(not c.root, "data.root", c.root, f"data.name={c.name} has no folder; use data.name=image_folder")
        sizes = f"the images of data.name={c.name} are {info.image_shape[0]} pixels wide; omit it"
        require(c.image_size == info.image_shape[0], "data.image_size", c.image_size, sizes)
        require(not c.skip_broken, "data.skip_broken", c.skip_broken, "only data.name=image_folder uses it; use false")
        for key in ("class_names", "content"):
            require(not c[key], f"data.{key}", c[key], "only data.name=image_folder uses it; leave it empty")


def check_folder(c: ConfigDict) -> None:
    """Checks the settings of a folder of pictures, before the folder is scanned."""
    fix = "set --config.data.root=DIR to the folder of pictures, with a folder for each class in it"
    require(bool(c.root), "data.root", "''", fix)
    root, data_dir = (real(path) for path in (c.root, c.data_dir))
    fix = f"the copy would lie within data.root={c.root}, where each folder is a class; use another folder"
    within = data_dir.relative_to(root).parts if data_dir.is_relative_to(root) else (".",)
    require(bool(within) and within[0].startswith("."), "data.data_dir", c.data_dir, fix)
    size = c.image_size
    require(size is not None and 1 <= size <= 4096, "data.image_size", size, "use a number of pixels from 1 to 4096")


def diffused_shape(config: ConfigDict, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape that the network sees of an image (H, W, C): the same, or with `model.latents` its latents'."""
    return latent_shape(config.autoencoder, image_shape) if config.model.latents else image_shape


def latent_shape(c: ConfigDict, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape (h, w, c) of the latents of an image (H, W, C)."""
    H, W, _ = image_shape
    return H // c.downsample, W // c.downsample, c.channels


def check_downsample(downsample: int, image_shape: tuple[int, int, int]) -> None:
    """Refuses images whose height or width is not a multiple of `downsample`."""
    H, W, _ = image_shape
    fix = f"it must divide the size of the images, {H} x {W} pixels"
    require(H % downsample == 0 and W % downsample == 0, "autoencoder.downsample", downsample, fix)


def check_autoencoder(config: ConfigDict, info: DatasetInfo) -> None:
    """Checks the autoencoder and its training, and refuses settings that latents do not support."""
    c = config.autoencoder
    require(c.downsample in DOWNSAMPLES, "autoencoder.downsample", c.downsample, f"use one of {DOWNSAMPLES}")
    groups = c.width >= 4 and c.width % (4 if c.width <= 4 * GROUPS else GROUPS) == 0
    fix = f"use a multiple of 4, or of {GROUPS} above {4 * GROUPS}, for the groups of its norms"
    require(groups, "autoencoder.width", c.width, fix)
    for key, most in {"width": 2**12, "depth": 2**6, "channels": 2**10}.items():
        require(c[key] <= most, f"autoencoder.{key}", c[key], f"use a whole number of at most {most:,}")
    for key in ("channels", "depth", "steps", "batch_size"):
        require(c[key] >= 1, f"autoencoder.{key}", c[key], "use a whole number of at least 1")
    require(c.learning_rate > 0, "autoencoder.learning_rate", c.learning_rate, "use a number above 0, such as 0.001")
    require(c.kl_weight >= 0, "autoencoder.kl_weight", c.kl_weight, "use 0 (none) or a number above 0")
    if not config.model.latents:
        return
    check_downsample(c.downsample, info.image_shape)
    fix = "latents (model.latents=true) are not limited to -1..1; use false"
    require(not config.sample.clip_x_0, "sample.clip_x_0", config.sample.clip_x_0, fix)
    fix = "the classifier works on noisy images, not noisy latents (model.latents=true); use 0"
    require(config.sample.classifier_scale == 0, "sample.classifier_scale", config.sample.classifier_scale, fix)


def check_model(c: ConfigDict, shape: tuple[int, int, int]) -> None:
    """Checks the network's names and sizes; `shape` is the (H, W, C) that it sees and splits into patches."""
    H, W, _ = shape
    for key in ("patch_size", "width", "depth", "num_heads", "num_kv_heads", "mlp_ratio", "class_table_width"):
        require(c[key] >= 1, f"model.{key}", c[key], "use a whole number of at least 1")
    for key, most in LARGEST.items():
        require(c[key] <= most, f"model.{key}", c[key], f"use a whole number of at most {most:,}")
    fix = f"with model.depth={c.depth} that is too large; use a depth x width^2 of at most {LARGEST_WEIGHTS:,}"
    require(c.depth * c.width**2 <= LARGEST_WEIGHTS, "model.width", c.width, fix)
    fits = H % c.patch_size == 0 and W % c.patch_size == 0
    seen = f"the size of the latents, {H} x {W}" if c.latents else f"the size of the images, {H} x {W} pixels"
    sizes = [p for p in range(1, min(H, W) + 1) if H % p == 0 and W % p == 0]
    require(fits, "model.patch_size", c.patch_size, f"it must divide {seen}; use one of {sizes}")
    even = f"it must divide model.width={c.width}; change one of them"
    require(c.width % c.num_heads == 0, "model.num_heads", c.num_heads, even)
    groups = [k for k in range(1, c.num_heads + 1) if c.num_heads % k == 0]
    fix = f"it must divide model.num_heads={c.num_heads}; use one of {groups}"
    require(c.num_heads % c.num_kv_heads == 0, "model.num_kv_heads", c.num_kv_heads, fix)
    require(c.width % 4 == 0, "model.width", c.width, "it must be a multiple of 4 (sine and cosine of row and column)")
    fix = f"with model.depth={c.depth}, no block lies between the two ends; use a depth of 3 or more"
    require(c.depth >= 3 or not c.long_skips, "model.long_skips", c.long_skips, fix)
    choice("model.conditioning", c.conditioning, CONDITIONINGS)
    choice("model.positions", c.positions, POSITIONS)
    choice("model.dtype", c.dtype, ("float32", "bfloat16"))


def check_diffusion(c: ConfigDict) -> None:
    """Checks the diffusion process, and that x_0 and eps can be recovered from the prediction at every timestep."""
    choice("diffusion.schedule", c.schedule, SCHEDULES)
    choice("diffusion.prediction", c.prediction, PREDICTIONS)
    choice("diffusion.timestep_sampling", c.timestep_sampling, TIMESTEP_SAMPLING)
    require(1 <= c.num_steps <= 10_000, "diffusion.num_steps", c.num_steps, "use 1 to 10,000 (DDPM uses 1000)")
    for key in ("beta_start", "beta_end"):
        require(0 < c[key] < 1, f"diffusion.{key}", c[key], "a beta lies between 0 and 1 (DDPM uses 0.0001 to 0.02)")
    ordered = f"it must not be above diffusion.beta_end={c.beta_end}"
    require(c.beta_start <= c.beta_end, "diffusion.beta_start", c.beta_start, ordered)
    require(c.logit_std > 0, "diffusion.logit_std", c.logit_std, "use a number above 0 (Esser et al. 2024 use 1)")
    choice("diffusion.loss_weighting", c.loss_weighting, LOSS_WEIGHTINGS)
    readable = c.loss_weighting != "velocity" or c.prediction != "eps"
    fix = "unbounded for diffusion.prediction=eps, which says least about the velocity at high noise; use x0 or v"
    require(readable, "diffusion.loss_weighting", c.loss_weighting, fix)
    require(c.min_snr_gamma > 0, "diffusion.min_snr_gamma", c.min_snr_gamma, "use a number above 0 (the paper uses 5)")
    two_ends = not c.zero_terminal_snr or c.num_steps > 1 or c.schedule == "rectified"
    require(two_ends, "diffusion.zero_terminal_snr", c.zero_terminal_snr, "diffusion.num_steps=1 is too few; use 2")
    schedule = make_schedule(c.schedule, c.num_steps, c.beta_start, c.beta_end, c.zero_terminal_snr)
    fix = "the betas erase the image long before the last timestep; lower diffusion.beta_end (DDPM uses 0.02)"
    require(bool(schedule.alpha[:-1].all()), "diffusion.beta_start", c.beta_start, fix)
    end = f"diffusion.schedule={c.schedule} with diffusion.zero_terminal_snr={c.zero_terminal_snr}"
    more = ", or lower diffusion.beta_end" if c.schedule == "linear" and not c.zero_terminal_snr else ""
    fix = f"it cannot recover the image from pure noise, which {end} reaches; use velocity or v{more}"
    if c.prediction == "x0":  # with betas from a very small one
        noise = f"t = 0 has too little noise to recover it (sigma = {schedule.sigma[0]:.2g})"
        fix = f"{noise}; use velocity or v, or raise diffusion.beta_start"
    require(solvable(schedule, c.prediction), "diffusion.prediction", c.prediction, fix)


def check_optimizer(c: ConfigDict) -> None:
    """Checks the optimizer."""
    choice("optimizer.schedule", c.schedule, RATES)
    require(c.learning_rate > 0, "optimizer.learning_rate", c.learning_rate, "use a number above 0, such as 0.0002")
    for key in ("b1", "b2"):
        require(c[key] >= 0 and bool(np.float32(c[key]) < 1), f"optimizer.{key}", c[key], "use at least 0 and below 1")
    for key in ("weight_decay", "clip_norm", "warmup_steps"):
        require(c[key] >= 0, f"optimizer.{key}", c[key], "use 0 (off) or a number above 0")


def check_train(c: ConfigDict) -> None:
    """Checks the training run."""
    for key in ("steps", "batch_size", "steps_per_call", "checkpoint_every", "keep_checkpoints", "log_every"):
        require(c[key] >= 1, f"train.{key}", c[key], "use a whole number of at least 1")
    require(c.microbatches >= 1, "train.microbatches", c.microbatches, "use 1 (off) or a divisor of a device's batch")
    require(c.steps_per_call <= LARGEST_CALL, "train.steps_per_call", c.steps_per_call, f"use 1 to {LARGEST_CALL:,}")
    require(c.max_bad_steps >= 1, "train.max_bad_steps", c.max_bad_steps, "use a whole number of at least 1")
    require(c.max_seconds >= 0, "train.max_seconds", c.max_seconds, "use 0 (no limit) or a number of seconds")
    require(c.sample_every >= 0, "train.sample_every", c.sample_every, "use 0 (never) or a number of steps")
    require(0 <= c.label_dropout < 1, "train.label_dropout", c.label_dropout, "use 0 (none) or a fraction below 1")
    require(0 <= c.dropout < 1, "train.dropout", c.dropout, "use 0 (none) or a fraction below 1, such as 0.1")
    require(c.ema_half_life >= 0, "train.ema_half_life", c.ema_half_life, "use a number of images, or 0 (no averaging)")
    require(c.ema_ramp > 0, "train.ema_ramp", c.ema_ramp, "use a fraction above 0 (Karras et al. 2022 use 0.05)")


def check_sample(config: ConfigDict, info: DatasetInfo) -> None:
    """Checks the sampling settings, and that the model was trained for them."""
    c, T = config.sample, config.diffusion.num_steps
    choice("sample.task", c.task, TASKS)
    choice("sample.weights", c.weights, ("ema", "raw"))
    known = c.checkpoint in ("newest", "best") or (c.checkpoint.isascii() and c.checkpoint.isdigit())
    require(known, "sample.checkpoint", c.checkpoint, "use newest, best, or the step of a checkpoint")
    choice("sample.sampler", c.sampler, SAMPLERS)
    choice("sample.spacing", c.spacing, SPACINGS)
    choice("sample.variance", c.variance, VARIANCES)
    require(0 <= c.eta <= 1, "sample.eta", c.eta, "use 0 (no noise) to 1 (as much as ddpm)")
    require(
        c.eta == 0 or c.sampler == "ddim", "sample.eta", c.eta, f"sample.sampler={c.sampler} ignores it; use 0, or ddim"
    )
    for key in ("n", "batch_size"):
        require(c[key] >= 1, f"sample.{key}", c[key], "use a whole number of at least 1")
    most = LARGEST_SAMPLES // math.prod(info.image_shape)
    require(c.n <= most, "sample.n", c.n, f"samples are kept in memory; use at most {most:,} per seed")
    require(1 <= c.steps <= T, "sample.steps", c.steps, f"use 1 to {T}, the steps of the process (diffusion.num_steps)")
    require(0 <= c.seed < 2**32, "sample.seed", c.seed, "use a whole number from 0 to 2^32 - 1")
    trained = config.train.label_dropout > 0 or c.guidance == 1
    fix = "a model trained with train.label_dropout=0 cannot predict without a class; use 1"
    require(trained, "sample.guidance", c.guidance, fix)
    require(c.guidance >= 0, "sample.guidance", c.guidance, "use 0 (unconditional), 1 (no guidance) or more")
    require(c.classifier_scale >= 0, "sample.classifier_scale", c.classifier_scale, "use 0 (none) or a number above 0")
    for key in ("guidance_from", "guidance_to"):
        require(0 <= c[key] <= 1, f"sample.{key}", c[key], "use a fraction of the timesteps, 0 (least noise) to 1")
    ordered = f"it must be below sample.guidance_to={c.guidance_to}"
    require(c.guidance_from < c.guidance_to, "sample.guidance_from", c.guidance_from, ordered)
    parse_labels(c.labels, info.class_names)
    check_task(c)


def check_task(c: ConfigDict) -> None:
    """Checks the sampling task and the images that it starts from."""
    given = c.task in TASKS_WITH_IMAGES
    require(bool(c.images) or not given, "sample.task", c.task, "it starts from images; set --config.sample.images")
    tasks = ", ".join(TASKS_WITH_IMAGES)
    needs = f"sample.task={c.task} starts from noise; leave it empty, or use one of the tasks {tasks}"
    require(given or not c.images, "sample.images", c.images, needs)
    fix = "inpaint needs a picture that is white in the area to redraw"
    require(bool(c.mask) or c.task != "inpaint", "sample.mask", "''", fix)
    reads_mask = not c.mask or c.task == "inpaint"
    require(reads_mask, "sample.mask", c.mask, f"sample.task={c.task} does not use a mask; leave it empty")
    require(0 < c.strength <= 1, "sample.strength", c.strength, "use a fraction of the steps, above 0 and up to 1")
    if c.task == "invert":
        require(c.sampler == "ddim" and c.eta == 0, "sample.sampler", c.sampler, "invert needs ddim with sample.eta=0")
        fix = "guidance cannot be traced back to the noise; use {}"
        require(c.guidance == 1, "sample.guidance", c.guidance, fix.format(1))
        require(c.classifier_scale == 0, "sample.classifier_scale", c.classifier_scale, fix.format(0))


def check_evaluate(c: ConfigDict) -> None:
    """Checks the evaluation settings."""
    choice("evaluate.features", c.features, NAMES)
    choice("evaluate.broken_images", c.broken_images, ("stop", "skip"))
    choice("evaluate.training_sampler", c.training_sampler, SAMPLERS)
    few = f"use {LEAST_IMAGES} or more; the scores by neighbours and by splits need that many"
    for key in ("n", "training_n"):
        require(c[key] >= LEAST_IMAGES, f"evaluate.{key}", c[key], few)
        most = f"use at most {LARGEST_EVALUATION:,}; FID commonly uses 50,000"
        require(c[key] <= LARGEST_EVALUATION, f"evaluate.{key}", c[key], most)
    require(c.loss_n >= 0, "evaluate.loss_n", c.loss_n, "use 0 (none) or a number of test images")
    require(c.every_steps >= 0, "evaluate.every_steps", c.every_steps, "use 0 (never) or a number of steps")
    require(c.training_steps >= 1, "evaluate.training_steps", c.training_steps, "use a whole number of at least 1")


def check_classifier(c: ConfigDict, info: DatasetInfo) -> None:
    """Checks the classifier and its training."""
    whole_groups = c.width >= GROUP_WIDTH and c.width % GROUP_WIDTH == 0
    fix = f"use a multiple of {GROUP_WIDTH}, the channels in a group of its norms"
    require(whole_groups, "classifier.width", c.width, fix)
    for key in ("width", "depth"):
        most = LARGEST[key]
        require(c[key] <= most, f"classifier.{key}", c[key], f"use a whole number of at most {most:,}")
    for key in ("depth", "steps", "batch_size"):
        require(c[key] >= 1, f"classifier.{key}", c[key], "use a whole number of at least 1")
    require(c.learning_rate > 0, "classifier.learning_rate", c.learning_rate, "use a number above 0, such as 0.001")
    least = min(info.image_shape[:2])
    fits = f"use 0 (none) to {least - 1}, less than the {least} pixels of the images"
    require(0 <= c.crop_padding < least, "classifier.crop_padding", c.crop_padding, fits)
    require(c.weight_decay >= 0, "classifier.weight_decay", c.weight_decay, "use 0 (off) or a number above 0")
