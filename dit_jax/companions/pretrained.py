"""Loads the weights of an AutoencoderKL saved by diffusers, such as Stable Diffusion's, into our autoencoder.

The file is a safetensors file, which holds arrays and no code.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dit_jax.errors import UserError

# Our names -> theirs -> those in files from before diffusers 0.16, such as sd-vae-ft-mse's.
NAMES = {
    r"\.Dense_0\b": "",
    r"\bdown_(\d+)_(\d+)": r"down_blocks.\1.resnets.\2",
    r"\bdownsample_(\d+)": r"down_blocks.\1.downsamplers.0.conv",
    r"\bup_(\d+)_(\d+)": r"up_blocks.\1.resnets.\2",
    r"\bupsample_(\d+)": r"up_blocks.\1.upsamplers.0.conv",
    r"\bmid_(\d)": r"mid_block.resnets.\1",
    r"\battention\b": "mid_block.attentions.0",
    r"\bto_out\b": "to_out.0",
    r"\b(kernel|scale)$": "weight",
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def load_autoencoder(path: Path, shapes: Any) -> Any:
    """Returns the weights in a file as a tree like `shapes`, float32.

    Raises:
      UserError: there is no such file, it cannot be read, or it is of another autoencoder.
    """
    what = f"autoencoder.pretrained={path}"
    if not path.is_file():
        raise UserError(
            f"{what}: there is no such file; give a diffusion_pytorch_model.safetensors of an AutoencoderKL"
        )
    try:
        tensors = load_file(path)
    except AttributeError as error:  # a dtype that NumPy lacks, such as 8-bit floats
        raise UserError(f"{what} has an unsupported number type ({error}); save it as float32") from None
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{what} cannot be read as safetensors ({error}); download it again") from None
    left = set(tensors)

    def take(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = their_name(path)
        if name not in tensors:
            name = re.sub("|".join(map(re.escape, OLD_NAMES)), lambda found: OLD_NAMES[found[0]], name)
        array = tensors.get(name)
        if array is None or (ours := to_ours(array)).shape != leaf.shape:
            found = "is missing" if array is None else f"does not fit with its shape {list(array.shape)}"
            fix = "set autoencoder.downsample, channels, width and depth to match (Stable Diffusion: 8, 4, 128, 2)"
            raise UserError(f"{what}: {name} {found}; {fix}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            kind = f"{name}: {array.dtype}"
            raise UserError(f"{what} has an unsupported number type ({kind}); save it as float32")
        if not np.isfinite(ours).all():
            raise UserError(f"{what}: {name} has values that are not finite in float32; download it again")
        left.discard(name)
        return ours

    params = jax.tree_util.tree_map_with_path(take, shapes)
    if left:
        raise UserError(f"{what} also has {min(left)}: it is another kind of autoencoder; use an AutoencoderKL")
    return params


def their_name(path: Any) -> str:
    """Returns diffusers' name for our parameter at `path` in the tree {"params": ...}."""
    name = ".".join(key.key for key in path[1:])
    for ours, theirs in NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def to_ours(array: np.ndarray) -> np.ndarray:
    """Returns a kernel [F, C, 3, 3] as [9 C, F], [F, C, 1, 1] or [F, C] as [C, F], all else unchanged; float32."""
    if array.size and array.ndim == 4 and array.shape[2:] in ((3, 3), (1, 1)):
        array = array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array, np.float32)
