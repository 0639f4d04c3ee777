"""Finds the weights of FID's Inception-v3, checks that they are the published ones, and converts them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_jax.errors import UserError
from dit_jax.evaluation.torch_file import read_tensors
from dit_jax.models.inception import Inception
from dit_jax.system.files import expanded

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
# The file's name has its first eight digits. torch-fidelity publishes the same file as `weights-inception-...`.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
VARIABLE = "DIT_JAX_INCEPTION"  # names the file if the config does not
LIMIT = 1 << 30  # bytes read: the file has a tenth of that, and any larger one is another file
EPSILON = 1e-3  # added to the variances of the batch norms


def load_inception(path: str | None) -> dict[str, Any]:
    """Loads the variables of `Inception` from the file at `path`, else from the one that $DIT_JAX_INCEPTION names.

    Raises UserError if neither names a file, or the file is not the published one.
    """
    file = find_weights(path, os.environ)
    return convert(read_tensors(read_checked(file)), file)


def find_weights(path: str | None, environment: Mapping[str, str]) -> Path:
    """Returns the file that `path` or the environment names. Raises UserError if there is none."""
    named = path or environment.get(VARIABLE)
    advice = (
        f"download {URL} and set --config.evaluate.inception_path=FILE or {VARIABLE}=FILE to its path; "
        f"without it, use --config.evaluate.features=classifier, the project's own classifier"
    )
    if not named:
        raise UserError(f"fid needs the weights of Inception-v3, which are not part of this project: {advice}")
    file = expanded(named)
    if not file.is_file():
        raise UserError(f"there are no Inception weights at {named}: {advice}")
    return file


def read_checked(file: Path) -> bytes:
    """Returns the file's bytes. Raises UserError unless they are the published ones: other FIDs are not comparable."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LIMIT)
    except OSError as error:
        raise UserError(f"cannot read the Inception weights {file} ({error.strerror}): check the file") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{file} is not the published file, of SHA-256 {SHA256}: download it again from {URL}")
    return content


def convert(tensors: dict[str, np.ndarray], file: Path) -> dict[str, Any]:
    """Converts PyTorch's weights to variables {"params": ...} in float32; folds batch norms into the convolutions.

    A kernel w with batch norm gamma, beta, mean, variance becomes w s with bias beta - mean s, where
    s = gamma / sqrt(variance + 1e-3), computed in float64. `file` is for the error message.

    Raises UserError for missing, surplus or misshapen tensors.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = left.pop(name, None)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}, expected {shape}"
            raise UserError(f"{file}: {name} {found}: these are not the weights {FILE}")
        return tensor.astype(np.float64)

    def fold(name: str, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
        height, width, inputs, outputs = shapes["kernel"].shape
        kernel = take(f"{name}.conv.weight", (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (take(f"{name}.bn.{part}", (outputs,)) for part in parts)
        scale = gamma / np.sqrt(variance + EPSILON)
        return {"kernel": (kernel * scale).astype(np.float32), "bias": (beta - mean * scale).astype(np.float32)}

    def fill(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
        return {
            name: fold(prefix + name, child) if "kernel" in child else fill(f"{prefix}{name}.", child)
            for name, child in tree.items()
        }

    tree = dict(parameter_shapes())
    outputs, inputs = tree.pop("fc_bias").shape[0], tree.pop("fc")["kernel"].shape[0]
    params = fill("", tree)
    params["fc"] = {"kernel": take("fc.weight", (outputs, inputs)).T.astype(np.float32)}
    params["fc_bias"] = take("fc.bias", (outputs,)).astype(np.float32)
    if left:
        raise UserError(f"{file} also holds {next(iter(left))}: these are not the weights {FILE}")
    return {"params": params}


def parameter_shapes() -> dict[str, Any]:
    """Returns the shapes of the network's parameters as a tree, without computing anything."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
