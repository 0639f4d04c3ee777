"""Class labels as users write them: names and numbers, and those that are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.settings.labels import check_first, check_labels, parse_labels

CLASSES = ("airplane", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", [0, 1, 2]),
        (" ", [0, 1, 2]),
        ("[]", [0, 1, 2]),
        ("cat", [1]),
        ("Cat, DOG", [1, 2]),
        ("2,0,2", [2, 0, 2]),
        ("[2, 1]", [2, 1]),
        ("(2,)", [2]),
        ("('cat', \"dog\")", [1, 2]),
        ("dog,1", [2, 1]),
        ("dog,1,", [2, 1]),
    ],
)
def test_labels_by_name_and_number(text, labels):
    assert parse_labels(text, CLASSES) == labels


def test_the_name_of_a_class_comes_before_its_number_and_its_like():
    assert parse_labels("10,2,Cat,cat,CAT,0", ("10", "2", "Cat", "cat")) == [0, 1, 2, 3, 3, 0]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat (1)", [0]),
        ("dog,cat (1)", [1, 0]),
        ("[dog, cat (1)]", [1, 0]),
        ("[x]", [2]),
        ("a,b", [3]),
        ("rock 'n', dog", [4, 1]),
    ],
)
def test_a_class_may_have_brackets_commas_and_quotes_in_its_name(text, labels):
    assert parse_labels(text, ("cat (1)", "dog", "[x]", "a,b", "rock 'n'")) == labels


@pytest.mark.parametrize("text", ["3", "-1", "1.0", "whale", "cat dog", "cat,whale"])
def test_labels_that_are_none(text):
    with pytest.raises(UserError, match=r"the classes are 0 airplane, 1 cat, 2 dog$"):
        parse_labels(text, CLASSES)


def test_the_first_image_is_numbered_by_a_whole_number():
    assert [check_first(first, 3) for first in (0, np.int64(7), jnp.int32(5), 2**31 - 3)] == [0, 7, 5, 2**31 - 3]
    for wrong in (0.5, 20_000_001.0, "1", None):
        with pytest.raises(UserError, match=r"first=.*: give a whole number"):
            check_first(wrong, 3)
    for wrong in (-1, 2**31 - 2):
        with pytest.raises(UserError, match=f"first={wrong}: give 0 to 2,147,483,645"):
            check_first(wrong, 3)


def test_of_many_classes_the_first_are_listed():
    with pytest.raises(UserError, match=r"the classes are 0 c0, 1 c1, .*, 19 c19 and 280 more \(data.class_names\)"):
        parse_labels("whale", [f"c{i}" for i in range(300)])


def test_label_range():
    check_labels(np.array([0, 2, 3]), CLASSES)  # 3 is "no class"
    with pytest.raises(UserError, match="label 3 is out of range"):
        check_labels(np.array([0, 2, 3]), CLASSES, unlabelled=False)
    for wrong in (-1, 4):
        with pytest.raises(UserError, match=f"label {wrong} is out of range; the classes are 0 airplane"):
            check_labels(np.array([0, wrong]), CLASSES)
