"""Latent diffusion at toy size: the demo's figures again, drawn by an autoencoder and a DiT on its latents.

    python main.py --config configs/shapes_latents.py --workdir runs/latents --mode=train_autoencoder
    python main.py --config configs/shapes_latents.py --workdir runs/latents
    python main.py --workdir runs/latents --mode=sample

An image of 32 x 32 pixels becomes 8 x 8 latents of 4 channels, 16 tokens for the DiT, as in the demo. Measured on 2
cores of an AMD EPYC that were also doing other work: the autoencoder took 17 min, the DiT 4 min; 98.9% of 2,000 guided
samples are recognised (results/shapes_latents).
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.model.latents = True
    config.model.patch_size = 2
    config.autoencoder.width = 16
    config.autoencoder.batch_size = 16
    config.autoencoder.steps = 5_000
    config.autoencoder.learning_rate = 2e-3
    return config
