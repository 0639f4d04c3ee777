"""Turns images into the feature vectors that metrics compare, by a network with a name and a hash of its weights."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.evaluation.inception_weights import SHA256, load_inception
from dit_jax.models.inception import Inception
from dit_jax.system.together import whole

BATCH = 64  # images per device, or on all CPU devices, at a time: Inception takes 5 MB of activations per image

Extract = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Extractor:
    """extract(images uint8 [n, H, W, C]) -> (features [n, D], logits [n, K]), float32, for any n >= 1.

    `sha256` is the hash of the weights; figures from other weights are not comparable.
    """

    name: str
    sha256: str
    extract: Extract


def make_extract(network: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]], weights: Any, mesh: Mesh) -> Extract:
    """Returns an `extract` that runs network(weights, images uint8 [B, H, W, C]) jitted and split over the mesh.

    Float32 products are computed exactly, where GPUs would use TF32, because figures must not depend on the card.
    """
    (axis,) = mesh.axis_names
    exact = jax.default_matmul_precision("highest")(network)
    mapped = jax.shard_map(exact, mesh=mesh, in_specs=(P(), P(axis)), out_specs=P(axis), check_vma=False)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    call, size = jax.jit(mapped), (-(-BATCH // mesh.size) if on_cpu else BATCH) * mesh.size
    weights = jax.device_put(weights, NamedSharding(mesh, P()))

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            filled = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            parts.append([whole(part)[: len(batch)] for part in call(weights, filled)])
        features, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
        return features, logits

    return extract


def classifier_features(apply: Callable[..., Any], params: Any, mesh: Mesh) -> Extractor:
    """Returns the project's classifier, apply(params, x, t) -> (features, logits), on clean images: t = 0."""

    def network(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = images.astype(jnp.float32) / 127.5 - 1
        return tuple(apply(params, x, jnp.zeros(len(images), jnp.int32)))

    return Extractor("classifier", weights_hash(params), make_extract(network, params, mesh))


def inception_features(path: str, mesh: Mesh) -> Extractor:
    """Returns FID's Inception, with weights from `path` or the environment; logits without bias as in published scores.

    Raises UserError if the weights are missing.
    """
    variables = load_inception(path)

    def network(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        output: Any = Inception().apply(variables, images)
        return output.features, output.unbiased_logits

    return Extractor("inception", SHA256, make_extract(network, variables, mesh))


def weights_hash(params: Any) -> str:
    """Returns the SHA-256 of a tree of arrays: names, shapes, dtypes and bytes, in the tree's order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = whole(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
