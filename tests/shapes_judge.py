"""Judges samples of `shapes` by a small classifier trained on the data set, and compares their variety with the data's.

    python tests/shapes_judge.py runs/shapes/samples/samples.npz

It shares no code with the model it judges: plain JAX and optax, about a minute on two CPU cores.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from dit_jax.data import datasets, shapes

CHANNELS = (3, 16, 32, 64)
BATCH, EPOCHS, NOISE = 100, 3, 0.05


def init(key: jax.Array) -> list[jax.Array]:
    """Returns weights of three 3x3 convolutions of stride 2 and a dense layer on the 4x4 map; He initialisation."""
    shapes_ = [(3, 3, a, b) for a, b in itertools.pairwise(CHANNELS)] + [(4 * 4 * CHANNELS[-1], 10)]
    keys = jax.random.split(key, len(shapes_))
    return [jax.random.normal(k, s) * np.sqrt(2 / np.prod(s[:-1])) for k, s in zip(keys, shapes_, strict=True)]


def logits(weights: list[jax.Array], images: jax.Array) -> jax.Array:
    """Maps images float32 [B, 32, 32, 3] in [-1, 1] to logits [B, 10]."""
    x = images
    for kernel in weights[:-1]:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
    return x.reshape(len(x), -1) @ weights[-1]


def train(data_dir: str) -> list[jax.Array]:
    """Returns weights after `EPOCHS` epochs of Adam on the training split, with a little noise added to the images."""
    images, labels = datasets.open_split(datasets.Source("shapes", data_dir)).load()
    steps = EPOCHS * len(images) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(weights, state, x, y, key):
        def loss(w):
            noisy = x / 127.5 - 1 + NOISE * jax.random.normal(key, x.shape)
            return optax.softmax_cross_entropy_with_integer_labels(logits(w, noisy), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    weights = init(jax.random.key(0))
    state, rng = optimizer.init(weights), np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(EPOCHS)])
    for i in range(steps):
        chosen = order[i * BATCH : (i + 1) * BATCH]
        key = jax.random.fold_in(jax.random.key(1), i)
        weights, state = step(weights, state, images[chosen].astype(np.float32), labels[chosen], key)
    return weights


def accuracy(weights: list[jax.Array], images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images uint8 [n, 32, 32, 3] that are classified as their label."""
    predicted = np.argmax(np.asarray(jax.jit(logits)(weights, images.astype(np.float32) / 127.5 - 1)), axis=1)
    return float(np.mean(predicted == labels))


class Measures(NamedTuple):
    """The factors of variation of n images, measured from their pixels.

    Colours are float64 [n, 3] in 0..255; area [n] is in pixels; center [n, 2] (x, y) is in pixels from the upper left
    corner.
    """

    background: np.ndarray
    fill: np.ndarray
    area: np.ndarray
    center: np.ndarray


def measure(images: np.ndarray) -> Measures:
    """Measures images uint8 [n, H, W, 3], of the data set or sampled from a model, to compare their variety.

    The background is the median of the border; the figure is where the difference from it is at least half its maximum.
    """
    pixels = images.astype(np.float64)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1)
    background = np.median(border, axis=1)
    contrast = np.abs(pixels - background[:, None, None]).sum(axis=-1)
    inside = contrast >= 0.5 * contrast.max(axis=(1, 2), keepdims=True)
    area = inside.sum(axis=(1, 2))
    middle = np.arange(0.5, shapes.SIZE)
    center = np.stack([inside.sum(axis=1) @ middle, inside.sum(axis=2) @ middle], axis=-1) / area[:, None]
    fill = np.stack([np.median(image[mask], axis=0) for image, mask in zip(pixels, inside, strict=True)])
    return Measures(background, fill, area, center)


def variety(images: np.ndarray) -> dict[str, list[list[float]]]:
    """Returns [mean, standard deviation] of each measured quantity, one pair per component."""
    measures = measure(images)._asdict()
    columns = {name: np.asarray(value, np.float64).reshape(len(images), -1) for name, value in measures.items()}
    return {name: np.round([c.mean(0), c.std(0)], 2).T.tolist() for name, c in columns.items()}


def judge(samples: Path, data_dir: str = "data") -> dict[str, object]:
    """Returns the accuracy and variety of a samples.npz, beside those of the real test split."""
    drawn = np.load(samples, allow_pickle=False)
    test = datasets.open_split(datasets.Source("shapes", data_dir), "test").load()
    weights = train(data_dir)
    return {
        "n": len(drawn["images"]),
        "accuracy": accuracy(weights, drawn["images"], drawn["labels"]),
        "accuracy_real": accuracy(weights, test.images, test.labels),
        "variety": variety(drawn["images"]),
        "variety_real": variety(test.images),
    }


if __name__ == "__main__":
    print(json.dumps(judge(Path(sys.argv[1])), indent=1))
