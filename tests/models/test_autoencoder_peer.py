"""Against diffusers' AutoencoderKL, in PyTorch, whose file is read as `autoencoder.pretrained`.

Needs requirements-peers.txt: run by `pytest -m slow tests/models/test_autoencoder_peer.py`, skipped without it.
"""

import jax
import numpy as np
import pytest

from dit_jax.companions.pretrained import load_autoencoder
from dit_jax.models.autoencoder import Autoencoder

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.slow

WIDTH, DEPTH, CHANNELS = 16, 2, 3
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def peer(downsample):
    """Returns diffusers' network with all weights random."""
    stages = downsample.bit_length()
    made = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=[WIDTH * min(2**stage, 4) for stage in range(stages)],
        layers_per_block=DEPTH,
        latent_channels=CHANNELS,
        norm_num_groups=WIDTH // 4,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return made


def with_old_names(file):
    """Gives tensors the names that diffusers used at the time of files such as sd-vae-ft-mse's."""
    tensors = safetensors.load_file(file)
    for new, old in OLD.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    safetensors.save_file(tensors, file)


@pytest.mark.parametrize(("downsample", "old"), [(2, False), (4, True), (8, False)])
def test_moments_and_images_are_theirs(downsample, old, tmp_path):
    theirs, model = peer(downsample), Autoencoder(3, downsample, CHANNELS, WIDTH, DEPTH)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    if old:
        with_old_names(file)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 24, 3)).astype(np.float32)
    z = rng.normal(size=(2, 16 // downsample, 24 // downsample, CHANNELS)).astype(np.float32)
    params = load_autoencoder(file, jax.eval_shape(model.init, jax.random.key(0), x, z))
    as_torch = lambda array: torch.tensor(array).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        posterior = theirs.encode(as_torch(x)).latent_dist
        images = theirs.decode(as_torch(z)).sample.permute(0, 2, 3, 1).numpy()
    mean, log_variance = model.apply(params, x, method="moments")
    for ours, of_theirs in ((mean, posterior.mean), (log_variance, posterior.logvar)):
        expected = of_theirs.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-4 * np.abs(expected).max())
    decoded = np.asarray(model.apply(params, z, method="decode"))
    np.testing.assert_allclose(decoded, images, atol=2e-4 * np.abs(images).max())
