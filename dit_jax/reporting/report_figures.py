"""The sections of a report that show numbers: loss, evaluations, loss by noise level."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dit_jax.reporting.charts import Axes, Curve, chart, legend_of, short, small_chart
from dit_jax.reporting.jsonl import column, number
from dit_jax.reporting.markup import Html, element, joined, missing, table
from dit_jax.reporting.smoothing import LOSS_LABEL, QUARTILE_LABELS, QUARTILES, running_mean, window

Row = Mapping[str, Any]
MOST_ROWS = 200  # of a table
MOST_CURVES = 6  # of a chart: more cannot be told apart
PERCENT = "accuracy"  # prefix of metrics that are shown in percent
# Only evaluations that agree in these can be compared.
SETTINGS = ("n", "reference_n", "seed", "sampler", "steps", "spacing", "variance", "eta", "guidance", "guidance_from",
            "guidance_to", "classifier_scale", "classifier_sha256", "clip_x_0", "weights", "dtype", "features_sha256",
            "during")  # fmt: skip
# Prefixes of the metrics' names; some are followed by the name of a feature network.
FIGURES = ("fid", "inception_score", "fd_", "kid", "precision", "recall", "density", "coverage", PERCENT)
HEADS = {"fid": "FID", "inception_score": "IS"}


class Clock(NamedTuple):
    """Converts steps to images seen and epochs; `steps_per_epoch` is None if it is not known."""

    images_per_step: float
    steps_per_epoch: float | None

    @property
    def images_per_epoch(self) -> float | None:
        return self.images_per_step * self.steps_per_epoch if self.steps_per_epoch else None


def shown(name: str, value: Any) -> str:
    """Formats a figure for people: accuracies in percent, counts with commas, a dash for none."""
    found = number(value)
    if found is None:
        return value if isinstance(value, str) and value else "-"
    if name.startswith(PERCENT):
        return f"{100 * found:.1f}%"
    return f"{found:,.0f}" if isinstance(value, int) else f"{found:,.4g}"


def loss_section(rows: Sequence[Row], clock: Clock) -> Html:
    """Returns the loss against images seen, and by quarter of the noise levels if the rows have it."""
    images, loss = column(rows, "step") * clock.images_per_step, column(rows, "loss")
    if not np.isfinite(loss).any():
        return missing("No row of metrics.jsonl has a loss that is a number, so there is no curve to draw.")
    curves = [Curve("", images, loss, "s0", "faint")] if window(loss) > 1 else []
    curves.append(Curve(LOSS_LABEL, images, running_mean(loss), "s0", "bold"))
    for i, (name, label) in enumerate(zip(QUARTILES, QUARTILE_LABELS, strict=True), 1):
        values = running_mean(column(rows, name))
        if np.isfinite(values).any():
            curves.append(Curve(label, images, values, f"s{i}"))
    last = np.flatnonzero(np.isfinite(loss))[-1]
    alt = f"Training loss, {running_mean(loss)[last]:.4f} at {images[last]:,.0f} images"
    told = f"Mean of the last {window(loss)} log rows" if window(loss) > 1 else "Each log row"
    bad = column(rows, "bad_steps")
    lost = int(bad[np.isfinite(bad)].sum())
    caption = (
        f"{told}, from {len(rows):,} rows. At the last one, after {images[last]:,.0f} images, the loss is "
        f"{running_mean(loss)[last]:.4f}. Each quarter is one of the timesteps; its loss is unweighted, so with a loss "
        "weighting or uneven timesteps the first curve is not their mean."
        + (f" {lost:,} steps were skipped because their loss or gradient was not finite." if lost else "")
    )
    return figure(chart(curves, Axes("loss", "images seen", clock.images_per_epoch), alt), caption)


def figure(content: Html, caption: str) -> Html:
    """Returns a picture with a caption below it."""
    return element("figure", content, element("figcaption", caption))


def figure_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the metrics in the rows that say how good a run is: FID and IS first, as in the report."""
    names = dict.fromkeys(name for row in rows for name in row if number(row[name]) is not None)
    others = [name for name in names if name.startswith(("fd_", PERCENT))]
    return [name for name in HEADS if name in names] + others


def progress_section(evaluations: Sequence[Row], clock: Clock, how: str) -> Html:
    """Returns the report's Table 1 and its metrics as curves, from evaluations.jsonl; `how` is the command for more."""
    own = sorted((row for row in evaluations if number(row.get("step")) is not None), key=lambda row: row["step"])
    elsewhere = [row for row in evaluations if number(row.get("step")) is None]
    parts = [progress_table(own, clock), progress_charts(own, clock)] if own else []
    if not own:
        parts = [missing("No samples of this run have been evaluated yet. This command draws and evaluates some:", how)]
    if elsewhere:
        names = figure_names(elsewhere)
        rows = [[str(row.get("images", "-")), *(shown(k, row.get(k)) for k in (*names, "n"))] for row in elsewhere]
        caption = "Images made elsewhere, evaluated with --images."
        parts.append(table(["images", *(HEADS.get(k, k) for k in names), "n"], rows[-MOST_ROWS:], caption))
    return joined(parts)


def progress_table(rows: Sequence[Row], clock: Clock) -> Html:
    """Returns a line per evaluation: epoch, images, step, the metrics and what they depend on; real images last."""
    names = figure_names(rows)
    head = ["epoch", "images", "step", *(HEADS.get(k, k) for k in names), "n", "sampler", "steps", "guidance"]
    lines = [progress_line(row, names, clock) for row in rows[-MOST_ROWS:]]
    floors = [row["floor"] for row in rows if isinstance(row.get("floor"), dict)]
    for floor in floors[-1:]:
        figures = [shown(k, floor.get(k)) for k in names]
        lines.append(["real", "", "", *figures, shown("n", floor.get("n")), "", "", ""])
    weights = sorted({str(row["weights"]) for row in rows if "weights" in row})
    caption = f"One line per evaluation, with {' and '.join(weights).upper() or 'unknown'} weights"
    caption += f": the newest {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else "."
    if floors:
        caption += (
            " “real” is the floor: as many unseen real images as the newest evaluation had samples, or all there are."
        )
    return table(head, lines, caption, words=0)


def progress_line(row: Row, names: Sequence[str], clock: Clock) -> list[str]:
    """Returns the cells of one evaluation."""
    step = row["step"]
    epoch = f"{step / clock.steps_per_epoch:,.2f}" if clock.steps_per_epoch else "-"
    figures = [shown(k, row.get(k)) for k in names]
    rest = [shown(k, row.get(k)) for k in ("n", "sampler", "steps", "guidance")]
    return [epoch, f"{step * clock.images_per_step:,.0f}", f"{step:,}", *figures, *rest]


def progress_charts(rows: Sequence[Row], clock: Clock) -> Html:
    """Returns a chart per metric against images seen; only comparable evaluations, of equal SETTINGS, share a curve."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.get(key) for key in SETTINGS], default=str), []).append(row)
    newest = sorted(groups.values(), key=lambda group: rows.index(group[-1]))[-MOST_CURVES:]
    parts = []
    for name in figure_names(rows):
        label = f"{HEADS.get(name, name)}{' (%)' if name.startswith(PERCENT) else ''}"
        axes = Axes(label, "images seen", clock.images_per_epoch, floor_of(rows, name))
        parts.append(element("div", small_chart(curves_of(newest, name, clock), axes, f"{label} against images seen")))
    names = [name_of(group[-1]) for group in newest]
    words = [
        draw_of(group[-1], name) if names.count(name) > 1 else name for group, name in zip(newest, names, strict=True)
    ]
    named = [Curve(word, np.empty(0), np.empty(0), f"s{i}") for i, word in enumerate(words)]
    named.append(Curve("real images, from the newest evaluation", np.empty(0), np.empty(0), "ink", "dashed"))
    return joined([element("div", *parts, class_="pair"), legend_of(named)])


def floor_of(rows: Sequence[Row], name: str) -> float | None:
    """Returns the metric of real images in the newest row that has it, scaled as it is drawn; None if none has."""
    found = (number(row["floor"].get(name)) for row in reversed(rows) if isinstance(row.get("floor"), dict))
    return next((value * scale_of(name) for value in found if value is not None), None)


def scale_of(name: str) -> float:
    """Returns the factor by which a metric is multiplied when it is drawn."""
    return 100.0 if name.startswith(PERCENT) else 1.0


def curves_of(groups: Sequence[Sequence[Row]], name: str, clock: Clock) -> list[Curve]:
    """Returns a curve for each group that has the metric."""
    found = []
    for i, group in enumerate(groups):
        values = column(group, name) * scale_of(name)
        if np.isfinite(values).any():
            found.append(Curve(name_of(group[-1]), column(group, "step") * clock.images_per_step, values, f"s{i}"))
    return found


def name_of(row: Row) -> str:
    """Returns a name that tells one way of evaluating from another."""
    words = [f"n {shown('n', row.get('n'))}"]
    if isinstance(row.get("sampler"), str):
        words.append(f"{row['sampler']}, {shown('steps', row.get('steps'))} steps")
    if number(row.get("guidance")) is not None:
        words.append(f"guidance {shown('', row['guidance'])}")
    if isinstance(row.get("during"), str):
        words.append(f"during {row['during']}")
    return ", ".join(words)


def draw_of(row: Row, name: str) -> str:
    """Returns a name with more that tells evaluations apart: seed, eta, variance, dtype, number of training images."""
    more = [f"{key} {row[key]}" for key in ("seed", "eta", "variance", "dtype", "reference_n") if key in row]
    return ", ".join([name, *more])


def evaluation_section(row: Row | None) -> Html:
    """Returns every metric of an evaluation beside that of real images."""
    if row is None or not isinstance(row.get("floor"), dict):
        return missing("There is no evaluation yet that also measured real images.")
    floor = row["floor"]
    both = [*row.items(), *floor.items()]
    names = dict.fromkeys(name for name, value in both if name.startswith(FIGURES) and isinstance(value, float))
    lines = [[name, shown(name, row.get(name)), shown(name, floor.get(name))] for name in names]
    against = f"the {row.get('reference_split', '')} split ({shown('n', row.get('reference_n'))} images)"
    caption = (
        f"Step {shown('step', row.get('step'))}, {name_of(row)}, seed {shown('seed', row.get('seed'))}, against "
        f"{against} by the features of {row.get('features', 'an unknown network')} "
        f"({str(row.get('features_sha256', ''))[:12]}). Real: {shown('n', floor.get('n'))} images of the "
        f"{floor.get('split', '')} split."
    )
    told = [each["warning"] for each in (row, floor) if each.get("warning")]
    warnings = [element("p", f"Warning: {line}", class_="warning") for line in told]
    parts = [table(["metric", "samples", "real images"], lines, caption)]
    for name, by_class in row.items():
        if name.endswith("_by_class") and isinstance(by_class, dict):
            real = floor.get(name) if isinstance(floor.get(name), dict) else {}
            lines = [[kind, shown("", value), shown("", real.get(kind))] for kind, value in by_class.items()]
            heading = f"{HEADS.get(name.removesuffix('_by_class'), name.removesuffix('_by_class'))} by class"
            parts.append(table([heading, "samples", "real images"], lines))
    return joined([*warnings, element("div", *parts, class_="pair")])


def noise_section(row: Row | None, how: str) -> Html:
    """Returns the held-out loss by noise level, in bins of timesteps, and the bits per dimension if there are any."""
    about = row.get("loss_by_noise") if row else None
    bins = noise_bins(about) if isinstance(about, dict) else []
    if row is None or not isinstance(about, dict) or not bins:
        return missing(
            "The loss by noise level on held-out images has not been measured. This command measures it:", how
        )
    edges = np.array([(low, high) for low, high, _ in bins], float)
    values = np.array([loss for _, _, loss in bins], float)
    curve = Curve("loss", edges.ravel(), np.repeat(values, 2), "s0", "bold", dots=False)
    told = (
        f"Mean squared error{of_what(about)} by timestep (least noise on the left), unweighted and without guidance: "
        f"step {shown('', row.get('step'))}, {shown('n', about.get('images'))} images of the "
        f"{about.get('split', 'unknown')} split, seed {shown('', about.get('seed'))}."
    )
    parts = [figure(chart([curve], Axes("loss", "timestep t"), "Loss by timestep"), told)]
    lines = [[f"{short(low)} to {short(high)}", f"{loss:.4g}"] for low, high, loss in bins]
    parts.append(element("details", element("summary", "The same in numbers"), table(["t", "loss"], lines)))
    if number(row.get("bits_per_dim")) is not None:
        parts.insert(1, element("p", bits_line(row)))
    return joined(parts)


def of_what(about: Row) -> str:
    """Returns words on what the network predicts; "" if the row does not say."""
    return f" of the predicted {about['prediction']}" if isinstance(about.get("prediction"), str) else ""


def bits_line(row: Row) -> str:
    """Returns a sentence with the variational bound and, if the row has them, its parts and standard error."""
    parts = row["bits_per_dim_parts"] if isinstance(row.get("bits_per_dim_parts"), dict) else {}
    error = shown("", parts.get("standard_error"))
    error = "" if error == "-" else f", standard error {error}"
    named = [f"{name} {shown('', parts[name])}" for name in ("prior", "vlb", "decoder") if name in parts]
    told = f": {' + '.join(named)}" if named else ""
    return f"Variational bound: {shown('', row['bits_per_dim'])} bits per dimension on the same images{told}{error}."


def noise_bins(found: Row) -> list[tuple[float, float, float]]:
    """Returns (t_from, t_to, loss) of each bin that has all three, from the lists of these names."""
    columns = [found.get(key) for key in ("t_from", "t_to", "loss")]
    if not all(isinstance(column, list) for column in columns):
        return []
    bins = [tuple(map(number, values)) for values in zip(*columns, strict=False)]  # pyright: ignore
    return [(low, high, loss) for low, high, loss in bins if None not in (low, high, loss)]  # pyright: ignore
