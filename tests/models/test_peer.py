"""The whole network against a peer in plain float64 NumPy, written from the papers with loops."""

from math import pi

import jax
import numpy as np
import pytest


def dense(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attention(p, x, heads, kv_heads):
    """Tokens [N, D]; query head h reads key/value head h // (heads / kv_heads)."""
    width = x.shape[1]
    size = width // heads
    qkv = dense(p["qkv"], x)
    q, k, v = qkv[:, :width], qkv[:, width : width + kv_heads * size], qkv[:, width + kv_heads * size :]
    out = []
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = q[:, h * size : (h + 1) * size] @ k[:, g * size : (g + 1) * size].T / np.sqrt(size)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        out.append(weights @ v[:, g * size : (g + 1) * size])
    return dense(p["out"], np.concatenate(out, axis=1))


def mlp(p, x):
    return dense(p["Dense_1"], gelu(dense(p["Dense_0"], x)))


def time_vector(p, t, activation):
    angles = t * 10_000.0 ** (-np.arange(128) / 128)
    wave = np.concatenate([np.cos(angles), np.sin(angles)])
    return dense(p["Dense_1"], activation(dense(p["Dense_0"], wave)))


def label_vector(p, label):
    row = np.asarray(p["Embed_0"]["embedding"], np.float64)[label]
    layers = sorted(
        (v for k, v in p.items() if k != "Embed_0"), key=lambda d: d["kernel"].shape
    )  # 12 x 32, then 32 x 32
    return dense(layers[1], gelu(dense(layers[0], row))) if layers else row


def patches_of(image, size):
    """[N, P P C]: patches in reading order, pixels (row, column, channel)."""
    height, width, channels = image.shape
    rows = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            rows.append(
                [image[top + i, left + j, c] for i in range(size) for j in range(size) for c in range(channels)]
            )
    return np.array(rows)


def position(row, column, features):
    frequencies = 10_000.0 ** (-np.arange(features // 4) / (features // 4))
    parts = [
        np.sin(column * frequencies),
        np.cos(column * frequencies),
        np.sin(row * frequencies),
        np.cos(row * frequencies),
    ]
    return np.concatenate(parts)


def forward(model, p, image, t, label):
    """One image through the DiT, token conditioning or adaLN-Zero."""
    _, width, channels = image.shape
    size, adaptive = model.patch_size, model.conditioning == "adaln_zero"
    x = dense(p["patch"], patches_of(image, size))
    columns = width // size
    x = x + np.stack([position(i // columns, i % columns, model.width) for i in range(len(x))])
    c = time_vector(p["time"], t, silu if adaptive else gelu) + label_vector(p["label"], label)
    if not adaptive:
        x = np.concatenate([x, c[None]])
    for i in range(model.depth):
        block = p[f"block_{i}"]
        m = np.split(dense(block["adaln"]["Dense_0"], silu(c)), 6) if adaptive else [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
        x = x + m[2] * attention(block["attention"], norm(x) * (1 + m[1]) + m[0], model.num_heads, model.num_kv_heads)
        x = x + m[5] * mlp(block["mlp"], norm(x) * (1 + m[4]) + m[3])
    m = np.split(dense(p["final_adaln"]["Dense_0"], silu(c)), 2) if adaptive else [0.0, 0.0]
    x = dense(p["final"], norm(x) * (1 + m[1]) + m[0])
    out = np.zeros_like(image)
    for i in range(len(patches_of(image, size))):
        top, left = i // columns * size, i % columns * size
        out[top : top + size, left : left + size] = x[i].reshape(size, size, channels)
    return out


@pytest.mark.parametrize(("conditioning", "kv_heads"), [("token", 1), ("token", 2), ("adaln_zero", 4)])
def test_equals_the_numpy_peer(make_tiny, make_inputs, randomised, conditioning, kv_heads):
    model = make_tiny(conditioning=conditioning, num_kv_heads=kv_heads)
    inputs = make_inputs((4, 8, 3))
    params = randomised(model, inputs)
    out = jax.jit(model.apply)(params, *inputs)
    for i in range(2):
        image, t, label = (np.asarray(a[i], np.float64) for a in inputs)
        expected = forward(model, params["params"], image, float(t), int(label))
        np.testing.assert_allclose(out[i], expected, atol=3e-5 * np.abs(expected).max())
