"""Images that a user brings: an .npz of ours, a picture, or a folder of pictures."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dit_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_images(path: Path, image_shape: tuple[int, int, int], key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(uint8 [n, H, W, C], labels int32 [n] or None): `images` and `labels` of an .npz, or pictures in order of name.

    `key` names the config key in what is refused. Nothing is unpickled.

    Raises:
      UserError: nothing there, not a picture or an .npz of images, or not of `image_shape`.
    """
    if not path.exists():
        raise UserError(f"{key}={path}: there is no such file; name an .npz with `images`, a picture, or a folder")
    images, labels = _read_npz(path, key) if path.suffix == ".npz" else (_read_pictures(path, image_shape, key), None)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0 or images.shape[1:] != image_shape:
        found = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{key}={path}: the images are {found}; they must be uint8 [n, {_listed(image_shape)}], n >= 1")
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"{key}={path}: {len(images)} images and labels {list(labels.shape)}; give one label an image")
    return images, labels


def read_mask(path: Path, height: int, width: int, key: str) -> np.ndarray:
    """Bool [H, W, 1]: where a picture of the images' size is white (above half)."""
    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file; name a picture, white where to draw anew")
    return _read_picture(path, (height, width, 1), key) > 127


def _read_npz(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file["labels"].astype(np.int32) if "labels" in file else None
            return file["images"], labels
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{key}={path} holds no `images` that can be read ({error}); see docs/workdir.md") from None


def _read_pictures(path: Path, image_shape: tuple[int, int, int], key: str) -> np.ndarray:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{key}={path}: no picture in the folder; it takes {', '.join(SUFFIXES)}")
    return np.stack([_read_picture(file, image_shape, key) for file in files])


def _read_picture(file: Path, image_shape: tuple[int, int, int], key: str) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L" if image_shape[2] == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{key}: {file} is not a picture that can be read ({error}); mend or remove it") from None
    if pixels.shape[:2] != image_shape[:2]:
        found, needed = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, image_shape))
        raise UserError(f"{key}: {file} is {found} pixels; the model takes {needed}: resize it")
    return pixels.reshape(image_shape)


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
