"""The sections of a report that show images: samples by class, the denoising, nearest training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dit_jax.reporting.jsonl import number
from dit_jax.reporting.markup import Html, data_uri, element, fitted, joined, picture, table
from dit_jax.reporting.report_figures import figure, shown

PER_CLASS, CLASSES = 10, 20  # samples shown
STRIP_BYTES = 1_400_000  # of the picture of the denoising, at most
LARGE = 700  # pixels; a wider one scrolls on a narrow screen, as its words would be too small


def settings_line(about: Mapping[str, Any]) -> str:
    """Returns how images were drawn, in a line; `about` is what their picture's file says, {} if that is unknown."""
    if not about:
        return "How they were drawn is not recorded with them"
    words = [f"Drawn at step {shown('', about.get('step'))}", f"n {shown('', about.get('n'))}"]
    words.append(f"{about.get('sampler', 'unknown sampler')}, {shown('', about.get('steps'))} steps")
    if about.get("spacing"):
        words.append(f"{about['spacing']} spacing")
    if number(about.get("guidance")) is not None:
        words.append(f"guidance {shown('', about['guidance'])}")
    words.append(f"seed {shown('', about.get('seed'))}, {str(about.get('weights', '')).upper()} weights")
    task = about.get("task", "generate")
    return ", ".join([*words, *([f"task {task}"] if task != "generate" else [])])


def samples_section(
    images: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str], about: Mapping[str, Any]
) -> Html:
    """Returns the first images, uint8 [n, H, W, C], of each class in rows; in a single row if labels are unknown."""
    names = ["samples"] if labels is None else class_names
    labels = np.zeros(len(images), int) if labels is None else labels
    classes = np.unique(labels)
    rows = []
    for label in classes[:CLASSES]:
        mine = np.flatnonzero(labels == label)[:PER_CLASS]
        drawn = (picture(images[i], f"{names[int(label)]}, sample {i}") for i in mine)
        rows.append(
            element(
                "div",
                element("h3", names[int(label)], title=names[int(label)]),
                element("div", *drawn, class_="row"),
                class_="named",
            )
        )
    caption = f"At most the first {PER_CLASS} samples of each class. {settings_line(about)}."
    if len(classes) > CLASSES:
        caption += f" Only the first {CLASSES} of {len(classes)} classes are shown."
    return figure(element("div", *rows, class_="classes"), caption)


def denoising_section(strip: Image.Image, about: Mapping[str, Any]) -> Html:
    """Returns the picture of the denoising, as the mode `sample` drew it."""
    data, kind = fitted(strip, STRIP_BYTES)
    alt = "Rows of images from noise to sample: x_t on the left and the predicted x_0 on the right"
    look = "strip large" if strip.width > LARGE else "strip"
    image = element("img", src=data_uri(data, kind), alt=alt, width=strip.width, height=strip.height, class_=look)
    caption = (
        "One row per image: x_t on the left, the x_0 that the network predicts from it on the right; above at "
        f"evenly spaced times, below at times closer and closer to the end. {settings_line(about)}."
    )
    return figure(element("div", image, class_="scroll paper", tabindex=0), caption)


@dataclass(frozen=True)
class Neighbour:
    """A training image beside a sample."""

    image: np.ndarray
    label: str
    distance: float


@dataclass(frozen=True)
class Suspect:
    """A sample with its nearest training images by the name of each distance, and its ratio by pixels."""

    index: int
    image: np.ndarray
    label: str
    ratio: float
    nearest: Mapping[str, Sequence[Neighbour]]


@dataclass(frozen=True)
class Memorisation:
    """scores: distance -> set of images ("samples", "real test images") -> name of each score -> value."""

    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    suspects: Sequence[Suspect]
    flipped: bool
    reference_n: int


def neighbours_section(found: Memorisation, notes: Sequence[Html]) -> Html:
    """Returns the scores of samples beside those of unseen real images, and the samples most like a training image.

    `notes` say which scores are missing.
    """
    lines = [
        [
            f"{images}, by {distance}",
            f"{scores['n']:,}",
            f"{scores['median']:.3f}",
            f"{scores['lowest']:.3f}",
            f"{100 * scores['half_share']:.1f}%",
            f"{100 * scores['third_share']:.1f}%",
        ]
        for distance, sets in found.scores.items()
        for images, scores in sets.items()
    ]
    k = next(iter(next(iter(found.scores.values())).values()))["neighbours"]
    mirrored = " (or their mirror images, which training also shows)" if found.flipped else ""
    caption = (
        f"Distance to the nearest of {found.reference_n:,} training images{mirrored}, divided by the mean distance to "
        f"the {k} nearest. 0 is a copy; ratios like those of unseen real images are no sign of memorisation. "
        "ratio < 1/2: after Carlini et al. 2023; first < second / 3: the nearest is less than a third as far away as "
        "the second nearest, the criterion of Yoon et al. 2023 for memorised images."
    )
    head = ["images", "n", "median ratio", "lowest", "ratio < 1/2", "first < second / 3"]
    rows = element("div", *map(suspect_row, found.suspects), class_="classes ruled")
    told = (
        "The samples with the lowest ratios by pixels, and the training images nearest to each. Below each image is "
        "its distance: by pixels, the root mean square difference of their values, 0 to 255; by features, Euclidean."
    )
    return joined([table(head, lines, caption), *notes, figure(rows, told)])


def suspect_row(suspect: Suspect) -> Html:
    """Returns a sample and its neighbours by each distance."""
    alt = f"sample {suspect.index}, {suspect.label}"
    groups = [neighbour_group(f"sample {suspect.index}", [tile(suspect.image, alt, f"ratio {suspect.ratio:.3f}")])]
    for distance, nearest in suspect.nearest.items():
        tiles = [
            tile(n.image, f"training image, {n.label}, near sample {suspect.index}", f"{n.distance:.3g}")
            for n in nearest
        ]
        groups.append(neighbour_group(f"nearest by {distance}", tiles))
    return element("div", element("h3", suspect.label), element("div", *groups, class_="row groups"), class_="named")


def neighbour_group(name: str, tiles: Sequence[Html]) -> Html:
    """Returns images side by side below their name."""
    return element("div", element("p", name, class_="name"), element("div", *tiles, class_="row"))


def tile(image: np.ndarray, alt: str, below: str) -> Html:
    """Returns an image with a short text below it."""
    return element("div", picture(image, alt), element("span", below) if below else None, class_="tile")
