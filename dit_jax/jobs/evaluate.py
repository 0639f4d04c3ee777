"""The mode evaluate: compares images of a run, or images made elsewhere, with real ones."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dit_jax import evaluations, loading
from dit_jax.data import datasets
from dit_jax.data.images import Images, open_images
from dit_jax.data.pipeline import steps_per_epoch
from dit_jax.errors import UserError
from dit_jax.evaluation import held_out
from dit_jax.evaluation.distances import bias_warning
from dit_jax.evaluation.evaluate import (
    FEW_TO_SCORE,
    LEAST_IMAGES,
    NAMES,
    Reference,
    Summary,
    in_proportion,
    scores,
    summarize,
)
from dit_jax.evaluation.features import Extractor, weights_hash
from dit_jax.experiment import Experiment
from dit_jax.jobs.judging import floor_warning, load_features, sampling_settings
from dit_jax.jobs.references import reference_of
from dit_jax.reporting.images import count_diverged, to_uint8
from dit_jax.settings.checks import require
from dit_jax.system.files import write_json, write_npz
from dit_jax.system.progress import Progress
from dit_jax.system.streams import tell
from dit_jax.system.together import all_true, check_alike, first_before_others, is_first, whole
from dit_jax.workdir import SAMPLE_FREE_KEYS, check_workdir, make_folder

logger = logging.getLogger(__name__)
CHUNK = 1_000  # images drawn between two saves, rounded up to whole batches
SAME_IMAGES = "each must read the same pictures"


@dataclass(frozen=True)
class Source:
    """The images to evaluate, what the result says about them besides figures, and the run that draws them, if any."""

    images: Images
    about: dict[str, Any]
    run: loading.Run | None = None


def evaluate(config: ConfigDict, workdir: Path, out: Path | None, images: Path | None = None) -> None:
    """Evaluates `evaluate.n` samples: writes WORKDIR/evaluation.json, adds a row to evaluations.jsonl, prints a table.

    If `images` is given, a folder of pictures or an NPZ file, they are judged instead, and the result goes to
    WORKDIR/evaluation_images.json. Otherwise the result also has the network's loss by noise level and its bound in
    bits, both on test images.

    Raises:
      UserError: there is no checkpoint, the weights of the feature network are missing, there are too few training
        images, or `images` cannot be used.
    """
    require(out is None, "--out", out, "evaluation writes to --workdir; omit --out")
    check_workdir(workdir, config, SAMPLE_FREE_KEYS)
    start = time.perf_counter()
    experiment = Experiment(config)
    with first_before_others():
        train, test = (datasets.open_split(experiment.source, split) for split in ("train", "test"))
    check_alike("data", [train.probe(), test.probe()], "each data.data_dir must hold the same data")
    few = f"{train.count} training images are too few to compare with; at least {LEAST_IMAGES} are needed, so add some"
    require(train.count >= LEAST_IMAGES, "data.name", config.data.name, few)
    extractor = load_features(config, workdir, experiment)
    names = experiment.info.class_names
    real = Images.stored(train)
    counts = np.bincount(np.asarray(real.labels), minlength=len(names))
    source = from_elsewhere(images, experiment) if images else from_run(config, workdir, counts)
    if is_first():
        make_folder(workdir, "--workdir")
    judged, sha256 = source.images.hashed()
    samples = sum_up(extractor, judged, "image")
    check_alike("images", sha256(), SAME_IMAGES)
    reference = reference_of(config, extractor, train, lambda: sum_up(extractor, real, "training image"))
    warning = bias_warning(reference.moments, samples.moments)
    if warning:
        logger.warning("%s: %s", NAMES[extractor.name]["frechet"], warning)
    if extractor.name == "inception" and samples.count < FEW_TO_SCORE:
        few = "inception_score: %d images in ten splits bias it low, to at most %d; compare only with as many images"
        logger.warning(few, samples.count, math.ceil(samples.count / 10))
    figures = scores(extractor.name, reference, samples, names)
    result = figures | source.about
    result |= {
        "n": samples.count,
        "images_sha256": sha256(),
        "features": extractor.name,
        "features_sha256": extractor.sha256,
    }
    result |= {"data": config.data.name, "reference_split": "train", "reference_n": reference.count, "warning": warning}
    if source.run:
        result |= held_out_figures(source.run, test) | progress_of(source.run, train.count)
    floor = floor_of(extractor, reference, test.first(samples.count), names)
    fewer = floor_warning(min(test.count, samples.count), samples.count)
    if fewer:
        logger.warning("%s", fewer)
    result |= {"floor": floor | {"warning": fewer}}
    result |= {"seconds": round(time.perf_counter() - start, 3)}
    if is_first():
        keep(result, workdir, "evaluation_images.json" if images else "evaluation.json")
        tell(table(result, figures))


def floor_of(
    extractor: Extractor, reference: Reference, test: datasets.Records, names: Sequence[str]
) -> dict[str, object]:
    """Returns the figures of the real test images; if there are too few, logs a warning and leaves the figures out."""
    about = {"split": "test", "n": test.count}
    if test.count < LEAST_IMAGES:
        logger.warning("%d test images are too few for a floor; at least %d are needed", test.count, LEAST_IMAGES)
        return about
    return scores(extractor.name, reference, sum_up(extractor, Images.stored(test), "test image"), names) | about


def sum_up(extractor: Extractor, images: Images, unit: str) -> Summary:
    """Runs `summarize` and shows its progress."""
    with Progress(images.count, unit) as progress:

        def told() -> Iterator[np.ndarray]:
            done = 0
            for chunk in images.chunks():
                yield chunk
                done += len(chunk)
                progress.update(done)

        return summarize(extractor.extract, told(), images.count, images.labels)


def from_elsewhere(path: Path, experiment: Experiment) -> Source:
    """Opens a folder or an NPZ file of images. Raises UserError if they do not fit the data set or are too few."""
    info = experiment.info
    skip = experiment.config.evaluate.broken_images == "skip"
    images = open_images(path, info.image_shape, len(info.class_names), skip_broken=skip)
    fix = f"{images.count} images are too few; give at least {LEAST_IMAGES}"
    require(images.count >= LEAST_IMAGES, "--images", path, fix)
    check_alike("images", images.count, SAME_IMAGES)  # so that all take equally many steps; their bytes follow
    if images.labels is None:
        logger.warning("%s has no labels, so figures by class are omitted", path)
    return Source(images, {"images": str(path)})


def from_run(config: ConfigDict, workdir: Path, class_counts: np.ndarray) -> Source:
    """Returns the run's samples, with classes in the proportions of the training images; reuses those on disk."""
    run, n = loading.load(workdir, config), config.evaluate.n
    batch_size = min(config.sample.batch_size, n)
    labels = in_proportion(class_counts, -(-n // batch_size) * batch_size)
    about = {"step": run.step, "dtype": config.model.dtype} | sampling_settings(config)
    about |= {"weights_sha256": weights_hash(run.weights), "classifier_sha256": run.classifier_sha256}
    shares = (class_counts // np.gcd.reduce(class_counts)).tolist()
    devices = [device.device_kind for device in run.experiment.mesh.devices.flat]
    exact = json.dumps(about | {"batch_size": batch_size, "devices": devices, "shares": shares})
    name = f"step{run.step}-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"
    folder = workdir / "evaluation" / name
    chunks = lambda: drawn(run, labels, n, batch_size, folder)  # noqa: E731
    return Source(Images(n, labels[:n], chunks), about, run)


def progress_of(run: loading.Run, num_examples: int) -> dict[str, Any]:
    """Returns how many images and epochs the checkpoint has been trained on."""
    batch_size = run.experiment.config.train.batch_size
    per_epoch = max(1, steps_per_epoch(num_examples, batch_size))  # the folder may have shrunk since
    return {"images": run.step * batch_size, "epoch": run.step / per_epoch}


def held_out_figures(run: loading.Run, test: datasets.Records) -> dict[str, Any]:
    """Returns `loss_by_noise`, and `bits_per_dim` with its parts, on the first `evaluate.loss_n` test images.

    `bits_per_dim` is left out if the network predicts x_0, as the bound weights its error by the SNR, a million at the
    lowest noise. It is also left out for a run on latents, which does not bound the likelihood of images.
    """
    experiment, c = run.experiment, run.experiment.config
    count, T = min(c.evaluate.loss_n, test.count), experiment.schedule.num_steps
    if not count:
        return {}
    codec = experiment.codec
    predictor = held_out.Predictor(
        lambda both, *inputs: experiment.apply(both[0], *inputs), experiment.schedule, c.diffusion.prediction,
        c.sample.clip_x_0, lambda both, x: codec.encode(both[1], x),
    )  # fmt: skip
    terms_of = held_out.make_terms(predictor, experiment.mesh, c.sample.batch_size)
    with Progress(count, "held-out image") as progress:
        terms = terms_of((run.weights, codec.weights), test.read, count, c.sample.seed, progress.update)
    about = {"images": count, "split": "test", "seed": c.sample.seed}
    losses = held_out.loss_by_noise(terms, T) | {"prediction": c.diffusion.prediction} | about
    if c.diffusion.prediction == "x0" or c.model.latents:
        return {"loss_by_noise": losses}
    bits, parts = held_out.bits_per_dim(terms, T)
    parts |= {"variance": "posterior", "clip_x_0": c.sample.clip_x_0} | about
    return {"loss_by_noise": losses, "bits_per_dim": bits, "bits_per_dim_parts": parts}


def drawn(run: loading.Run, labels: np.ndarray, n: int, batch_size: int, folder: Path) -> Iterator[np.ndarray]:
    """Yields the first n images with the classes `labels`, which fill whole batches, uint8, in chunks.

    Each chunk is saved before it is yielded, and read from disk next time. After an interruption, batches begin where
    they would have without it, so the images are bitwise the same.
    """
    size = -(-CHUNK // batch_size) * batch_size
    for first in range(0, n, size):
        count, path = min(size, n - first), folder / f"{first:08d}.npz"
        images = read_chunk(path, count, run.experiment.info.image_shape)
        if not all_true(images is not None):
            firsts = range(first, first + count, batch_size)
            images = np.concatenate([draw(run, labels[i : i + batch_size], i) for i in firsts])
            if is_first():
                write_npz(path, {"images": images})
        assert images is not None
        yield images[:count]


def draw(run: loading.Run, labels: np.ndarray, first: int) -> np.ndarray:
    """Draws the images from number `first` on, uint8 [len(labels), H, W, C]. Raises UserError if any has diverged."""
    c = run.experiment.config.sample
    images = whole(run.sample(run.weights, jax.random.key(c.seed), labels, first))
    lost = count_diverged(images)
    if lost:
        raise UserError(f"{lost} of the images {first}..{first + len(images) - 1} have diverged, so they "
                        "cannot be evaluated; lower sample.guidance, or train longer")  # fmt: skip
    return to_uint8(images)


def read_chunk(path: Path, count: int, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Returns the images in a saved chunk, at least `count`; None if there are fewer, or the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]  # checked by the archive's CRC
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged header can raise any error of Python's tokenizer
        logger.warning("%s cannot be read (%s): these images are drawn again", path, error)
        return None
    sound = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == shape
    return images if sound and len(images) >= count else None


def keep(result: dict[str, Any], workdir: Path, name: str) -> None:
    """Writes the result to WORKDIR/name, and appends it as a line to WORKDIR/evaluations.jsonl."""
    write_json(workdir / name, result)
    evaluations.append(workdir, result)


def table(result: dict[str, Any], figures: Iterable[str]) -> str:
    """Returns a table with each figure next to that of real images."""
    floor = result["floor"]
    lines = [f"{'':28}{result['n']:>11,} images{floor['n']:>11,} real"]
    for name in dict.fromkeys((*floor, *figures)):
        values = [row.get(name) for row in (result, floor)]
        if any(isinstance(value, float) for value in values):
            ours, theirs = ("-" if value is None else f"{value:.4g}" for value in values)
            lines.append(f"{name:28}{ours:>18}{theirs:>16}")
    if "bits_per_dim" in result:
        lines.append(f"{'bits_per_dim':28}{result['bits_per_dim']:>18.4g}")
    return "\n".join(lines)
