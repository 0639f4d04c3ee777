"""Parses and checks class labels as users write them, and the number of the first image to draw."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from dit_jax.errors import UserError

LISTED = 20  # classes in an error message, at most


def parse_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """Returns the classes of a list of names or numbers, such as "cat, dog", "[3, 5]" or "(2,)"; "" is all of them.

    Raises:
      UserError: the data set has no such class; the message lists those that it has.
    """
    exact = {name: i for i, name in enumerate(class_names)}  # comes first: a class may be named 7, or Cat beside cat
    text = text.strip()
    if text in exact:  # a name may contain a comma
        return [exact[text]]
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    words = [word if (word := part.strip()) in exact else word.strip(" '\"") for part in inner.split(",")]
    if not words[-1]:  # nothing at all, or a trailing comma: (2,)
        words.pop()
    numbers = {name.lower(): i for i, name in enumerate(class_names)} | {str(i): i for i in range(len(class_names))}
    labels = [exact.get(word, numbers.get(word.lower())) for word in words]
    for word, label in zip(words, labels, strict=True):
        if label is None:
            raise UserError(f"sample.labels={text}: there is no class '{word}'; {known_classes(class_names)}")
    return [label for label in labels if label is not None] or list(range(len(class_names)))


def check_labels(labels: np.ndarray, class_names: Sequence[str], unlabelled: bool = True) -> None:
    """Refuses labels that are not a list of integers, an empty list, and labels outside 0..num_classes.

    num_classes, which stands for "no class", is refused too unless `unlabelled`.
    """
    if not labels.size:
        raise UserError(f"labels=[]: give at least one; {known_classes(class_names)}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {labels.shape}: give a list of numbers; {known_classes(class_names)}"
        )
    wrong = labels[(labels < 0) | (labels >= len(class_names) + unlabelled)]
    if wrong.size:
        raise UserError(f"label {wrong[0]} is out of range; {known_classes(class_names)}")


def check_first(first: Any, count: int) -> int:
    """Returns the number of the first of `count` images.

    Raises UserError unless it is whole and all their numbers are in 0..2^31 - 1.
    """
    try:
        number = operator.index(first)
    except TypeError:
        raise UserError(f"first={first!r}: give a whole number") from None
    if not 0 <= number <= 2**31 - count:
        raise UserError(f"first={number}: give 0 to {2**31 - count:,}")
    return number


def known_classes(class_names: Sequence[str]) -> str:
    """Returns a phrase that lists the classes, or the first of many."""
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(class_names[:LISTED]))
    more = len(class_names) - LISTED
    return f"the classes are {listed}" + (f" and {more} more (data.class_names)" if more > 0 else "")
