"""Pictures of one's own: ROOT/CLASS/PICTURE.{png,jpg,jpeg,webp}.

    python main.py --config configs/image_folder.py --config.data.root=DIR --workdir runs/mine

A DiT-S with patches of 4 on 64 x 64 pixels, flow matching. Name another size by --config.data.image_size=32, and fewer
images a step by --config.train.batch_size=16, as a CPU or some hundred pictures need. Images are also mirrored:
--config.data.flip=false, where a mirror image is another thing, as with letters. Not measured yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config().lock()
    config.data.name = "image_folder"
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
    config.evaluate.n = 2_000
    config.evaluate.features = "classifier"
    config.classifier.steps = 4_000
    return config
