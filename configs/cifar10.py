"""CIFAR-10.

`report` is the student report's recipe: 19.1 M parameters, token conditioning, noise prediction with linear betas,
AdamW at 2e-4, 200 epochs at batch 256. Added to it here: averaged weights, label dropout, flips and gradient clipping.

    python main.py --config configs/cifar10.py:report --workdir runs/cifar10

`best` is our recipe for one GPU: adaLN-Zero, long skips, QK norm, rectified flow with logit-normal timesteps, warm-up
and cosine decay, bfloat16, weights averaged with a half-life of a twentieth of the run. Patches are 2 pixels wide;
`--config.model.patch_size=4` is 3.6 times as fast. The settings come from papers and from pilot runs of `cpu`. An H200
trains 6,360 images/s, which is 27 minutes for all of it. That has not been run; results/cifar10_best_gpu has 3,600
steps with patches of 4, which took two minutes and are about as good as `cpu` at the same guidance.

`cpu` takes a little over an hour on two CPU cores: 4 M parameters, patches of 4 pixels, x_0 prediction.

    python main.py --config configs/cifar10.py:cpu --workdir runs/cifar10_cpu --config.model.dtype=bfloat16

It was measured in results/cifar10_cpu: 68 min on two cores of an AMD EPYC, which is faster in bfloat16. A classifier
that we did not train recognises 80% of 2,000 samples (93.8% of real images).

This trains the classifier whose features evaluate the samples (32 min on two CPU cores, 86.2% of the test images):

    python main.py --config configs/cifar10.py:report --workdir runs/cifar10 --mode=train_classifier

All recipes need the data: see "CIFAR-10" in the README. Of `report`, results/cifar10_report_cpu is all that is measured
so far: two and a half epochs, in the 68 minutes that `cpu` took. The 200 epochs have not been run.
"""

from ml_collections import ConfigDict

from configs import default
from dit_jax.errors import UserError


def get_config(recipe: str = "report") -> ConfigDict:
    if recipe not in RECIPES:
        known = ", ".join(f"configs/cifar10.py:{name}" for name in RECIPES)
        raise UserError(f"configs/cifar10.py has no recipe '{recipe}'; use {known}")
    config = default.get_config().lock()
    RECIPES[recipe](config)
    return config


def report(config: ConfigDict) -> None:
    """Changes nothing, as the defaults are the report's."""


def flow(config: ConfigDict) -> None:
    """Sets what `best` and `cpu` share: rectified flow (Esser et al. 2024), adaLN-Zero, cosine decay, sampling."""
    config.model.conditioning = "adaln_zero"
    config.model.positions = "grid"
    config.diffusion.schedule = "rectified"
    config.diffusion.timestep_sampling = "logit_normal"
    config.diffusion.stratified_timesteps = True
    config.optimizer.schedule = "cosine"
    config.train.ema_half_life = 1e12  # images; only the ramp matters, so that the average adapts to the run's length
    config.train.ema_ramp = 0.05
    config.sample.sampler = "dpmpp_2m"
    config.sample.spacing = "trailing"
    config.sample.steps = 50
    config.sample.clip_x_0 = False


def best(config: ConfigDict) -> None:
    """Sets 32 M parameters and 20,000 steps of 512 images (205 epochs)."""
    flow(config)
    config.model.patch_size = 2
    config.model.num_heads = 6  # of width 64, which GPU kernels prefer to 8 of width 48
    config.model.qk_norm = True
    config.model.long_skips = True
    config.model.dtype = "bfloat16"
    config.diffusion.prediction = "velocity"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 1_000
    config.train.steps = 20_000
    config.train.batch_size = 512
    config.train.steps_per_call = 50
    config.sample.guidance = 1.5
    config.sample.batch_size = 1_000


def cpu(config: ConfigDict) -> None:
    """Sets 4 M parameters and 40,000 steps of 16 images (13 epochs); prediction, weighting and b2 are the demo's."""
    flow(config)
    config.model.width = 192
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.qk_norm = True
    config.model.long_skips = True
    config.diffusion.prediction = "x0"
    config.diffusion.loss_weighting = "velocity"
    config.diffusion.logit_mean = 0.4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_steps = 500
    config.train.steps = 40_000
    config.train.batch_size = 16
    config.train.sample_every = 0
    config.sample.guidance = 3.0
    config.evaluate.loss_n = 1_000


RECIPES = {"report": report, "best": best, "cpu": cpu}
