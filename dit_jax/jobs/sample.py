"""The mode sample: draws images or edits given ones, and pictures how they come about."""

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dit_jax import loading
from dit_jax.data.images import open_images, read_mask
from dit_jax.data.pipeline import to_float
from dit_jax.diffusion import sampling, tasks
from dit_jax.experiment import Experiment, Sample, make_sample, pass_size
from dit_jax.reporting.denoising import animation, frames_of, save_gif, strip
from dit_jax.reporting.images import count_diverged, label_grid, save_png, to_uint8
from dit_jax.settings.checks import require
from dit_jax.settings.labels import parse_labels
from dit_jax.system.files import expanded, write_npz
from dit_jax.system.progress import Progress
from dit_jax.system.together import check_alike, is_first, whole
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir, make_folder

logger = logging.getLogger(__name__)
PICTURED = 10  # images, at most, in the pictures of the denoising


class Task(NamedTuple):
    """What to draw: labels [n], a sampler, and the sampler's other inputs, each [n, ...]."""

    labels: np.ndarray
    sample: Sample
    inputs: tuple[np.ndarray, ...] = ()
    row_of: np.ndarray | None = None  # of each image in the grid, [n]; None means a row per label


def sample(config: ConfigDict, workdir: Path, out: Path | None) -> None:
    """Runs `sample.task` with the weights that `sample.weights` names; writes `samples.npz` and pictures to `out`.

    `out` is WORKDIR/samples by default.

    Raises:
      UserError: there is no checkpoint, the workdir holds a run of another config, the given images do not fit, or
        `out` is a file.
    """
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    out = out or workdir / "samples"
    require(not out.exists() or out.is_dir(), "--out", out, "it is a file; use a folder")
    given = read_given(config, Experiment(config))
    sums = [zlib.crc32(array.tobytes()) for array in given]
    check_alike("given images, labels or mask", sums, "each must read the same pictures")
    run = loading.load(workdir, config)
    if is_first():
        make_folder(out, "--out")
    arrays: dict[str, np.ndarray] = {}
    if config.sample.task == "invert":
        arrays["noise"] = invert(run, *given)
        task = Task(given[1], run.task(tasks.from_noise), (arrays["noise"],))
    else:
        task = TASKS[config.sample.task](run, *given)
    images = draw_all(run, task)
    if config.sample.task == "inpaint":
        images = np.where(given[2], images, given[0])  # keeps the known pixels to the bit, even if latents were drawn
    about = settings_of(run) | {"n": len(images), "images_sha256": hashlib.sha256(images.tobytes()).hexdigest()}
    if is_first():
        for stale in ("grid.png", "denoising.png", "denoising.gif"):  # none may remain beside new samples
            if (out / stale).is_file():
                (out / stale).unlink()
        write_npz(out / "samples.npz", arrays | {"images": images, "labels": task.labels})
        save_png(out / "grid.png", grid(images, task, run.experiment.info.class_names), about)
    if config.sample.task == "invert":
        logger.info("inverted and drawn again: PSNR %.1f dB over %d images", psnr(images, given[0]), len(images))
    if config.sample.task == "generate" and config.sample.denoising:
        picture_denoising(run, task.labels, out, about)
    logger.info("step %d: %d images in %s and %s", run.step, len(images), out / "samples.npz", out / "grid.png")


def read_given(config: ConfigDict, experiment: Experiment) -> tuple[np.ndarray, ...]:
    """Returns (images uint8 [n, H, W, C], labels [n]) for a task that starts from images; () for the other tasks.

    A mask, bool [H, W, 1], is added for inpainting. Labels are `sample.labels` in turn or, if that is empty, the
    file's; if there are none, all classes in turn.
    """
    c, shape = config.sample, experiment.info.image_shape
    if c.task in ("generate", "interpolate"):
        return ()
    found = open_images(
        expanded(c.images), shape, len(experiment.info.class_names), "sample.images", fit=True, most=c.n
    )
    images, labels = np.concatenate(list(found.chunks()))[: c.n], found.labels
    if labels is None and not c.labels and len(experiment.info.class_names) > 1:
        logger.warning("sample.images=%s has no labels, so all classes are used in turn; set sample.labels to those "
                       "of the images", c.images)  # fmt: skip
    if labels is None or c.labels:
        labels = np.resize(parse_labels(c.labels, experiment.info.class_names), len(images)).astype(np.int32)
    labels = labels[: len(images)].astype(np.int32)
    mask = (read_mask(expanded(c.mask), *shape[:2], "sample.mask"),) if c.task == "inpaint" else ()
    return images, labels, *mask


def encoded(run: loading.Run, images: np.ndarray) -> np.ndarray:
    """Converts images uint8 [n, H, W, C] to what the run diffuses: float32 pixels in [-1, 1], or latents."""
    experiment, codec = run.experiment, run.experiment.codec
    encode = jax.jit(codec.encode)
    size = pass_size(min(experiment.config.sample.batch_size, len(images)), experiment.mesh)
    padded = np.resize(images, (len(images) + -len(images) % size, *images.shape[1:]))  # see `make_sample`
    parts = (to_float(padded[first : first + size]) for first in range(0, len(padded), size))
    return np.concatenate([whole(encode(codec.weights, part)) for part in parts])[: len(images)]


def generate(run: loading.Run) -> Task:
    """Returns the task of drawing `sample.n` images from noise."""
    return Task(run.experiment.labels(), run.sample)


def interpolate(run: loading.Run) -> Task:
    """Returns the task of one row per label, `sample.n` images in all, evenly along the arc between two noises."""
    c = run.experiment.config.sample
    chosen = parse_labels(c.labels, run.experiment.info.class_names)
    columns = max(2, -(-c.n // len(chosen)))
    row, column = np.divmod(np.arange(min(c.n, columns * len(chosen))), columns)
    labels = np.asarray(chosen, np.int32)[row]
    plan, shape = run.experiment.plan(), run.experiment.x_shape

    def between(index_B: jax.Array, weight_B: jax.Array) -> jax.Array:
        ends = [sampling.image_keys(jax.random.key(c.seed), 2 * index_B + i) for i in (0, 1)]
        first, last = (sampling.start(run.experiment.schedule, plan, keys_B, shape) for keys_B in ends)
        return tasks.slerp(first, last, weight_B)

    noise = np.asarray(jax.jit(between)(jnp.asarray(row), jnp.asarray(column / (columns - 1), jnp.float32)))
    return Task(labels, run.task(tasks.from_noise), (noise,), row)


def image_to_image(run: loading.Run, images: np.ndarray, labels: np.ndarray) -> Task:
    """Returns the task of noising images to `sample.strength` of the steps and drawing them again as `labels`."""
    strength = run.experiment.config.sample.strength
    timesteps = tasks.last_steps(run.experiment.timesteps(), strength)
    return Task(labels, run.task(tasks.image_to_image(strength), timesteps), (encoded(run, images),))


def inpaint(run: loading.Run, images: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> Task:
    """Returns the task of redrawing given images where the mask is white."""
    height, width, _ = run.experiment.x_shape
    known = ~mask.reshape(height, mask.shape[0] // height, width, -1, 1).any((1, 3))  # for latents: if all pixels are
    known = np.broadcast_to(known, (len(images), *known.shape))
    return Task(labels, run.task(tasks.inpaint), (encoded(run, images), known))


TASKS: dict[str, Callable[..., Task]] = {
    "generate": generate,
    "interpolate": interpolate,
    "image_to_image": image_to_image,
    "inpaint": inpaint,
}


def invert(run: loading.Run, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the noise, float32 [n, H, W, C] for pixels or latents, from which DDIM draws the images."""
    experiment = run.experiment
    plan = tasks.ddim_inverse(experiment.schedule, experiment.timesteps())
    to_noise = make_sample(experiment, plan, tasks.from_noise, decode=False)
    return draw_all(run, Task(labels, to_noise, (encoded(run, images),)), lambda noise: noise, "noise")


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of uint8 images in dB, over all of them; infinite if they are equal."""
    error = np.square(images.astype(np.float64) - reference).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def settings_of(run: loading.Run) -> dict[str, Any]:
    """Returns what the images depend on: the checkpoint's step and every key of `sample.*`."""
    return {"step": run.step} | dict(run.experiment.config.sample.items())


def picture_denoising(run: loading.Run, labels: np.ndarray, out: Path, about: dict[str, Any]) -> None:
    """Writes `denoising.png` and `denoising.gif` of the first images: as many as there are classes, ten at most."""
    count = min(PICTURED, len(np.unique(labels)))
    plan = run.experiment.plan()
    watched = frames_of(np.flatnonzero(plan.keep))
    c = run.experiment.config.sample
    watch = run.task(tasks.denoising(watched))
    seen = whole(watch(run.weights, jax.random.key(c.seed), labels[:count]))
    if not is_first():
        return
    x_t, x_0 = to_uint8(seen[:, 0]), to_uint8(seen[:, 1])
    t = [*(int(step) for step in plan.t[watched]), -1]
    names = [run.experiment.info.class_names[i] for i in labels[:count]]
    save_png(out / "denoising.png", strip(x_t, x_0, t, names), about)
    save_gif(out / "denoising.gif", animation(x_t, x_0))


def grid(images: np.ndarray, task: Task, class_names: Sequence[str]) -> np.ndarray:
    """Returns a picture of what a task has drawn, uint8 [height, width, 3]."""
    if task.row_of is None:
        return label_grid(images, task.labels, class_names)
    firsts = np.unique(task.row_of, return_index=True)[1]
    return label_grid(images, task.row_of, [class_names[int(i)] for i in task.labels[firsts]], len(images))


def draw_all(
    run: loading.Run, task: Task, convert: Callable[[np.ndarray], np.ndarray] = to_uint8, unit: str = "image"
) -> np.ndarray:
    """Draws a task's images [n, H, W, C] in batches; the last one is padded, so that one compiled program serves all.

    `convert` is applied to each batch; by default it makes uint8. `unit` is a word for what is drawn.
    """
    c, n, images, lost = run.experiment.config.sample, len(task.labels), None, 0
    key, batch_size = jax.random.key(c.seed), min(c.batch_size, n)
    fill = lambda x: np.resize(x, (batch_size, *x.shape[1:]))  # noqa: E731
    with Progress(n, unit) as progress:
        for first in range(0, n, batch_size):
            labels, *inputs = (fill(x[first : first + batch_size]) for x in (task.labels, *task.inputs))
            drawn = whole(task.sample(run.weights, key, labels, first, inputs))[: n - first]
            lost, drawn = lost + count_diverged(drawn), convert(drawn)
            images = np.empty((n, *drawn.shape[1:]), drawn.dtype) if images is None else images
            images[first : first + batch_size] = drawn
            progress.update(min(first + batch_size, n))
    if lost:
        inverts = c.task == "invert"  # without guidance
        fix = "use sample.spacing=trailing and more sample.steps" if inverts else "lower sample.guidance"
        told = "%d of %d %ss have diverged, to values far outside [-1, 1] or NaN: %s, or train longer"
        logger.warning(told, lost, n, unit, fix)
    assert images is not None
    return images
