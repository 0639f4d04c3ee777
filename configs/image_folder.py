"""Your own pictures: ROOT/CLASS/PICTURE.{png,jpg,jpeg,webp}.

    python main.py --config configs/image_folder.py --config.data.root=DIR --workdir runs/mine

This trains a DiT-S with patches of 4 pixels on images of 64 x 64 pixels by flow matching, on a GPU. Choose another size
with, for example, --config.data.image_size=32. Images are randomly mirrored; set --config.data.flip=false where
mirroring changes the meaning, as with letters. The recipe has not been measured yet.

`cpu` is the recipe of configs/cifar10.py:cpu (4 M parameters) on 32 x 32 pixels. It takes an hour and a half on two
cores of an AMD EPYC, extrapolated from its first minutes; --config.model.dtype=bfloat16 is faster on processors that
support it.

    python main.py --config configs/image_folder.py:cpu --config.data.root=DIR --workdir runs/mine
"""

from ml_collections import ConfigDict

from configs import cifar10, default
from dit_jax.errors import UserError


def get_config(recipe: str = "gpu") -> ConfigDict:
    if recipe not in RECIPES:
        known = ", ".join(f"configs/image_folder.py:{name}" for name in RECIPES)
        raise UserError(f"configs/image_folder.py has no recipe '{recipe}'; use {known}")
    config = default.get_config().lock()
    RECIPES[recipe](config)
    config.data.name = "image_folder"
    config.evaluate.n = 2_000
    config.evaluate.features = "classifier"
    config.classifier.steps = 4_000
    return config


def gpu(config: ConfigDict) -> None:
    """Sets 33 M parameters and 50,000 steps of 64 images."""
    config.data.image_size = 64
    config.model.preset = "DiT-S/4"
    config.diffusion.schedule = "rectified"
    config.diffusion.prediction = "velocity"
    config.diffusion.timestep_sampling = "logit_normal"
    config.train.steps = 50_000
    config.train.batch_size = 64
    config.train.sample_every = 2_500
    config.sample.sampler = "dpmpp_2m"
    config.sample.spacing = "trailing"
    config.sample.steps = 20
    config.sample.guidance = 2.0
    config.sample.clip_x_0 = False


def cpu(config: ConfigDict) -> None:
    """Sets 4 M parameters and 40,000 steps of 16 images."""
    cifar10.cpu(config)
    config.data.image_size = 32


RECIPES = {"gpu": gpu, "cpu": cpu}
