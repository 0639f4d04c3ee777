"""The numbers of a report: Table 1 by hand, which rows make one curve, what is no number."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dit_jax.reporting.jsonl import column, number
from dit_jax.reporting.report_figures import (
    Clock,
    evaluation_section,
    figure_names,
    loss_section,
    noise_bins,
    noise_section,
    progress_charts,
    progress_section,
    shown,
)

CLOCK = Clock(images_per_step=256, steps_per_epoch=195)  # CIFAR-10 at the report's batch size
HOW = "python main.py --workdir W --mode=evaluate"
DRAWN = {"n": 5_000, "sampler": "ddpm", "steps": 1000, "guidance": 1.0, "weights": "ema"}


class Tables(HTMLParser):
    """The tables of a page as lists of rows of cells."""

    def __init__(self, markup):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


def tables(markup):
    return Tables(markup).tables


def test_table_1_by_hand():
    """The report's: 40 epochs of 195 steps are 7,800 steps and 1,996,800 images. Rows come in any order."""
    rows = [
        {"step": 15_600, "fid": 50.04, "inception_score": 5.5, **DRAWN},
        {"step": 7_800, "fid": 65.123, "inception_score": 4.5, "floor": {"fid": 3.15, "n": 5_000}, **DRAWN},
    ]
    (table,) = tables(progress_section(rows, CLOCK, HOW))
    assert table == [
        ["epoch", "images", "step", "FID", "IS", "n", "sampler", "steps", "guidance"],
        ["40.00", "1,996,800", "7,800", "65.12", "4.5", "5,000", "ddpm", "1,000", "1"],
        ["80.00", "3,993,600", "15,600", "50.04", "5.5", "5,000", "ddpm", "1,000", "1"],
        ["real", "", "", "3.15", "-", "5,000", "", "", ""],
    ]


def test_other_features_have_columns_of_their_own():
    rows = [{"step": 195, "fid": 9.0, **DRAWN}, {"step": 195, "fd_classifier": 0.5, "accuracy_classifier": 0.962}]
    table = tables(progress_section(rows, CLOCK, HOW))[0]
    assert table[0] == ["epoch", "images", "step", "FID", "fd_classifier", "accuracy_classifier", "n", "sampler",
                        "steps", "guidance"]  # fmt: skip
    assert table[1][3:7] == ["9", "-", "-", "5,000"]
    assert table[2] == ["1.00", "49,920", "195", "-", "0.5", "96.2%", "-", "-", "-", "-"]


def test_images_made_elsewhere_have_a_table_of_their_own():
    rows = [{"images": "theirs.npz", "fid": 7.0, "n": 100}]
    made = progress_section(rows, CLOCK, HOW)
    assert tables(made) == [[["images", "FID", "n"], ["theirs.npz", "7", "100"]]]
    assert HOW in made  # and how to evaluate the run itself
    assert HOW in progress_section([], CLOCK, HOW)


def test_only_like_is_joined_by_a_curve():
    """Two rows of 5,000 samples and one of 50,000: two curves, of two dots and of one."""
    rows = [{"step": s, "fid": f, **DRAWN, "n": n} for s, f, n in ((1, 30, 5_000), (2, 20, 5_000), (2, 18, 50_000))]
    wide = progress_charts(rows, CLOCK).split('class="narrow"')[0]
    assert [len(re.findall(f'class="dot s{i}"', wide)) for i in range(3)] == [2, 1, 0]
    assert wide.count("<svg") == 1


@pytest.mark.parametrize("other", [{"eta": 1.0}, {"seed": 1}, {"variance": "small"}, {"dtype": "bfloat16"}])
def test_other_draws_are_another_curve(other):
    rows = [{"step": 1, "fid": 3.0, **DRAWN}, {"step": 1, "fid": 4.0, **DRAWN} | other]
    wide = progress_charts(rows, CLOCK).split('class="narrow"')[0]
    assert [len(re.findall(f'class="dot s{i}"', wide)) for i in range(2)] == [1, 1]
    assert f", guidance 1, {next(iter(other))} {next(iter(other.values()))}<" in progress_charts(rows, CLOCK)


def test_real_images_are_those_of_the_newest_row():
    """They may equal those of an earlier row."""
    floors = [{"fid": 3.0, "n": 10}, {"fid": 2.0, "n": 20}, {"fid": 3.0, "n": 10}]
    rows = [{"step": i, "fid": 9.0, "floor": floor} for i, floor in enumerate(floors)]
    assert tables(progress_section(rows, CLOCK, HOW))[0][-1][3:5] == ["3", "10"]


def test_without_figures_of_real_images_the_samples_are_shown():
    """As an evaluation with fewer than ten test images leaves it."""
    row = {"step": 5, "fd_classifier": 0.75, "precision_classifier": 0.5, "guidance": 2.0, "floor": {"n": 4}}
    (figures,) = tables(evaluation_section(row))
    assert figures[1:] == [["fd_classifier", "0.75", "-"], ["precision_classifier", "0.5", "-"]]


def test_a_loss_of_any_size_is_drawn():
    rows = [{"step": i, "loss": loss} for i, loss in enumerate((1.0, 1e300, 1e-310, 1e99, 1e-99))]
    assert "<svg" in loss_section(rows, CLOCK)


def test_without_epochs():
    (table,) = tables(progress_section([{"step": 10, "fid": 1.0}], Clock(4, None), HOW))
    assert table[1][:3] == ["-", "40", "10"]


@pytest.mark.parametrize("value", [None, "7", True, float("nan"), float("inf"), -float("inf"), 10**400, [1], {}])
def test_no_number(value):
    assert number(value) is None
    assert figure_names([{"fid": value}]) == []
    made = progress_section([{"step": 1, "fid": value, "accuracy_x": 0.5, "n": value, "guidance": value}], CLOCK, HOW)
    assert tables(made)[0][1][3] == "50.0%"


def test_numbers_as_they_are_shown():
    assert shown("n", 50_000) == "50,000"
    assert shown("fid", 12.3456) == "12.35"
    assert shown("accuracy_classifier", 0.9666) == "96.7%"
    assert shown("sampler", "ddim") == "ddim"


def test_loss():
    rows = [{"step": s, "loss": v, "bad_steps": s - 1} for s, v in ((1, 0.5), (2, None), (3, 0.25))]
    made = loss_section(rows, CLOCK)
    assert "768 images, the loss is 0.2500" in made
    assert "3 steps were skipped" in made
    assert "is a number" in loss_section([{"step": 1, "loss": None}], CLOCK)


def test_evaluation_beside_its_floor():
    row = {"step": 5, "fd_classifier": 0.75, "kid_classifier": 0.01, "floor": {"fd_classifier": 0.25, "n": 20},
           "fd_classifier_by_class": {"cat": 1.5}, "warning": "too few", "features": "classifier", **DRAWN}  # fmt: skip
    figures, by_class = tables(evaluation_section(row))
    assert figures[1:] == [["fd_classifier", "0.75", "0.25"], ["kid_classifier", "0.01", "-"]]
    assert by_class[1] == ["cat", "1.5", "-"]
    assert "Warning: too few" in evaluation_section(row)
    assert "Warning: no floor" not in evaluation_section(row)
    assert "Warning: no floor" in evaluation_section(row | {"floor": row["floor"] | {"warning": "no floor"}})


BINS = [(0, 100, 0.5), (100, 200, 0.1)]


def test_loss_by_noise():
    found = {"t_from": [0, 100], "t_to": [100, 200], "loss": [0.5, 0.1], "images": 64, "split": "test", "seed": 0}
    assert noise_bins(found) == BINS
    made = noise_section({"step": 9, "loss_by_noise": found, "bits_per_dim": 3.75}, HOW)
    assert tables(made) == [[["t", "loss"], ["0 to 100", "0.5"], ["100 to 200", "0.1"]]]
    assert "Variational bound: 3.75 bits per dimension" in made
    assert "64 images" in made
    assert "bits" not in noise_section({"step": 9, "loss_by_noise": found, "bits_per_dim": None}, HOW)


def test_the_bound_in_its_parts():
    """As `evaluate` writes them, and a bin that holds no timestep."""
    found = {"t_from": [0, 1], "t_to": [1, 1], "loss": [0.5, None], "n": [64, 0], "images": 64, "prediction": "eps"}
    parts = {"prior": 0.25, "vlb": 3.0, "decoder": 0.5, "standard_error": 0.125, "n": 64, "t_sampling": "x"}
    row = {"step": 9, "loss_by_noise": found, "bits_per_dim": 3.75, "bits_per_dim_parts": parts}
    made = noise_section(row, HOW)
    assert tables(made) == [[["t", "loss"], ["0 to 1", "0.5"]]]
    assert "64 images" in made
    assert "of the predicted eps by timestep" in made
    assert "3.75 bits per dimension on the same images: prior 0.25 + vlb 3 + decoder 0.5, standard error 0.125" in made


@pytest.mark.parametrize("found", [None, 3, "x", [], {}, [1], {"t_from": [0], "t_to": 1, "loss": [1]}, [{"loss": 1}]])
def test_no_loss_by_noise(found):
    assert HOW in noise_section({"step": 1, "loss_by_noise": found}, HOW)
    assert HOW in noise_section(None, HOW)


def test_columns_have_gaps_where_there_is_no_number():
    np.testing.assert_array_equal(column([{"a": 1}, {}, {"a": "x"}, {"a": 2.5}], "a"), [1, np.nan, np.nan, 2.5])
