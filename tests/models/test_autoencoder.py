"""The autoencoder's network: against NumPy, its shapes, its latents, and that images do not affect each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.autoencoder import Attention, Autoencoder, Block, stage_widths

pytestmark = pytest.mark.medium


def build(downsample=4, channels=3, width=8, depth=1):
    """Returns (apply, params, x, eps) with all weights random; `apply` is jitted, with a static `method`."""
    model = Autoencoder(3, downsample, channels, width, depth)
    x = jax.random.normal(jax.random.key(0), (2, 16, 8, 3))
    eps = jax.random.normal(jax.random.key(1), (2, 16 // downsample, 8 // downsample, channels))
    return jax.jit(model.apply, static_argnames="method"), randomised(model, x, eps), x, eps


def randomised(model, *inputs):
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(2), *inputs))
    rng = np.random.default_rng(0)
    return tree.unflatten([rng.normal(size=leaf.shape, scale=0.2).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def network():
    return build()


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def conv(params, x, stride=1, before=1):
    """A 3x3 convolution as the sum over the kernel's nine positions, with zeros outside the image."""
    (height, width, inputs), dense = x.shape[1:], params["Dense_0"]
    kernel = dense["kernel"].reshape(3, 3, inputs, -1)
    padded = np.pad(x, ((0, 0), (before, 2 - before), (before, 2 - before), (0, 0)))
    near = lambda i, j: padded[:, i : i + height : stride, j : j + width : stride]  # noqa: E731
    return sum(near(i, j) @ kernel[i, j] for i in range(3) for j in range(3)) + dense["bias"]


def norm(params, x):
    """Group norm of two groups of channels (Wu & He 2018, equation 7), epsilon 1e-6."""
    groups = x.reshape(len(x), -1, 2, x.shape[-1] // 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-6)
    return scaled.reshape(x.shape) * params["scale"] + params["bias"]


def activated(params, x):
    x = norm(params, x)
    return x / (1 + np.exp(-x))


def block(params, x):
    hidden = conv(params["conv1"], activated(params["norm1"], x))
    hidden = conv(params["conv2"], activated(params["norm2"], hidden))
    return hidden + (dense(params["conv_shortcut"], x) if "conv_shortcut" in params else x)


def attention(params, x):
    """One head over all positions: softmax(q k^T / sqrt(C)) v of Vaswani et al. 2017, equation 1."""
    tokens = norm(params["group_norm"], x).reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(params[name], tokens) for name in ("to_q", "to_k", "to_v"))
    weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(x.shape[-1]))
    return x + dense(params["to_out"], weights / weights.sum(-1, keepdims=True) @ v).reshape(x.shape)


def middle(params, x):
    return block(params["mid_1"], attention(params["attention"], block(params["mid_0"], x)))


@pytest.mark.parametrize(
    ("module", "peer"), [(Block(12, 2), block), (Attention(2), attention)], ids=["block", "attention"]
)
def test_a_part_is_that_of_numpy(module, peer):
    """The values are so small that the norm's epsilon, 1e-6, is as large as their variance."""
    x = 1e-3 * jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    params = randomised(module, x)
    expected = peer(in_float64(params)["params"], in_float64(x))
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)


def test_moments_and_images_are_those_of_numpy(network):
    """Stages of 8, 16 and 32 channels, one block each, and two in the decoder; 16 x 8 pixels to 4 x 2 latents."""
    apply, params, x, _ = network
    weights = in_float64(params)["params"]
    coder, y = weights["encoder"], conv(weights["encoder"]["conv_in"], in_float64(x))
    for stage in range(3):
        y = block(coder[f"down_{stage}_0"], y)
        y = conv(coder[f"downsample_{stage}"], y, stride=2, before=0) if stage < 2 else y
    y = dense(weights["quant_conv"], conv(coder["conv_out"], activated(coder["conv_norm_out"], middle(coder, y))))
    mean, log_variance = y[..., :3], np.clip(y[..., 3:], -30, 20)
    for ours, theirs in zip(apply(params, x, method="moments"), (mean, log_variance), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    coder, z = weights["decoder"], dense(weights["post_quant_conv"], mean)
    z = middle(coder, conv(coder["conv_in"], z))
    for stage in range(3):
        z = block(coder[f"up_{stage}_1"], block(coder[f"up_{stage}_0"], z))
        nearest = z[:, np.arange(2 * z.shape[1]) // 2][:, :, np.arange(2 * z.shape[2]) // 2]
        z = conv(coder[f"upsample_{stage}"], nearest) if stage < 2 else z
    z = conv(coder["conv_out"], activated(coder["conv_norm_out"], z))
    np.testing.assert_allclose(apply(params, jnp.float32(mean), method="decode"), z, atol=1e-4 * np.abs(z).max())


@pytest.mark.parametrize("downsample", [2, 4, 8])
def test_each_stage_halves_the_size(downsample):
    apply, params, x, eps = build(downsample)
    shapes = lambda method, *inputs: jax.eval_shape(partial(apply, method=method), params, *inputs)  # noqa: E731
    mean, log_variance = shapes("moments", x)
    assert mean.shape == log_variance.shape == (2, 16 // downsample, 8 // downsample, 3)
    assert shapes("decode", mean).shape == x.shape
    assert shapes("__call__", x, eps).images.shape == x.shape


def test_stages_are_stable_diffusions():
    """Its VAE has block_out_channels 128, 256, 512, 512; LDM's of downsampling 4 has ch_mult 1, 2, 4."""
    assert stage_widths(128, 8) == (128, 256, 512, 512)
    assert stage_widths(64, 4) == (64, 128, 256)


def test_latents_are_drawn_from_the_moments_and_their_kl_is_a_gaussians(network):
    apply, params, x, eps = network
    mean, log_variance = (np.asarray(moment, np.float64) for moment in apply(params, x, method="moments"))
    std = np.exp(log_variance / 2)
    output = apply(params, x, eps)
    again = apply(params, jnp.asarray(mean + std * np.asarray(eps), jnp.float32), method="decode")
    np.testing.assert_allclose(output.images, again, atol=1e-4)
    kl = -np.log(std) + (std**2 + mean**2) / 2 - 0.5  # of N(mean, std^2) from N(0, 1), by the textbook
    np.testing.assert_allclose(output.kl_B, kl.sum((1, 2, 3)), rtol=1e-4)


def test_variances_stay_finite(network):
    apply, params, x, _ = network
    last = jax.tree.map(lambda leaf: 1e4 * leaf, params["params"]["quant_conv"])
    huge = {"params": params["params"] | {"quant_conv": last}}
    log_variance = np.asarray(apply(huge, x, method="moments")[1])
    assert (log_variance.min(), log_variance.max()) == (-30, 20)


def test_brightness_reaches_the_latents_and_the_images(network):
    """The group norms inside could lose it; the path around them must not."""
    apply, params, x, _ = network
    mean, _ = apply(params, x, method="moments")
    brighter, _ = apply(params, x + 0.5, method="moments")
    assert np.abs(brighter - mean).max() > 1e-2
    images = [apply(params, z, method="decode") for z in (mean, mean + 0.5)]
    assert np.abs(images[0] - images[1]).max() > 1e-2


@pytest.mark.long
def test_no_image_sees_another(network):
    apply, params, x, eps = network
    gradient = np.asarray(jax.jit(jax.grad(lambda x: apply(params, x, eps).images[0].sum()))(x))
    assert np.any(gradient[0] != 0)
    assert not np.any(gradient[1:])
