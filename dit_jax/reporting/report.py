"""report.html: one self-contained page that says what a run is, how good it is and how to reproduce it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dit_jax.reporting.jsonl import column, number
from dit_jax.reporting.markup import Html, command, element, joined, missing, table
from dit_jax.reporting.report_figures import (
    Clock,
    evaluation_section,
    figure_names,
    loss_section,
    noise_section,
    progress_section,
    shown,
)
from dit_jax.reporting.style import STYLE

Row = Mapping[str, Any]
# No script, no request: the page may load nothing but what is in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FEATURED = 2  # metrics of the newest evaluation at the top of the page


@dataclass(frozen=True)
class Report:
    """The data that a page is drawn from.

    rows: of metrics.jsonl; evaluations: of evaluations.jsonl; samples, denoising, neighbours: finished sections;
    settings: (key, value) pairs of the config; sessions: rows of sessions.jsonl; here: `environment.facts` of the
    process that draws the page; commands: by mode, and those that continue the run ("resume") or make it again
    elsewhere ("again"); notes: on what could not be read; drawn: date and time (UTC).
    """

    name: str
    data: str
    rows: Sequence[Row]
    evaluations: Sequence[Row]
    clock: Clock
    steps: int
    parameters: int
    samples: Html
    denoising: Html
    neighbours: Html
    settings: Sequence[tuple[str, Any]]
    sessions: Sequence[Row]
    here: Row
    commands: Mapping[str, str]
    drawn: str
    notes: Sequence[str] = field(default=())

    @property
    def step(self) -> int:
        """Steps done, according to the log."""
        return self.rows[-1]["step"]

    @property
    def logged(self) -> list[Row]:
        """The rows of training itself; those of evaluations have no loss."""
        return [row for row in self.rows if "loss" in row]

    def newest(self, key: str, *kinds: type) -> Row | None:
        """Returns the last evaluation of the run itself whose `key` is of one of `kinds`, or None."""
        own = (row for row in reversed(self.evaluations) if number(row.get("step")) is not None)
        return next((row for row in own if isinstance(row.get(key), kinds)), None)


def draw_page(report: Report) -> str:
    """Returns the whole page as HTML."""
    sections = {
        "Training loss": loss_section(report.logged, report.clock),
        "Progress": progress_section(report.evaluations, report.clock, report.commands["evaluate"]),
        "Newest evaluation": evaluation_section(report.newest("floor", dict)),
        "Loss by noise level": noise_section(report.newest("loss_by_noise", dict), report.commands["evaluate"]),
        "Samples by class": report.samples,
        "Denoising": report.denoising,
        "Nearest training images": report.neighbours,
        "Configuration": config_section(report),
        "How it was made": origin_section(report),
    }
    body = joined([header(report, list(sections)), element("main", *map(section, sections, sections.values())),
                   footer(report)])  # fmt: skip
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("link", rel="icon", href="data:,"),
        element("title", f"{report.name}: dit-jax run report"),
        element("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def section(title: str, content: Html) -> Html:
    """Returns a section that the table of contents links to."""
    return element("section", element("h2", title), content, id=anchor(title))


def anchor(title: str) -> str:
    """Returns the id of a section, for links to it."""
    return title.lower().replace(" ", "-")


def header(report: Report, titles: Sequence[str]) -> Html:
    """Returns a sentence on what the run is, its key figures, and the table of contents."""
    clock, step = report.clock, report.step
    epochs = f", {step / clock.steps_per_epoch:,.2f} epochs" if clock.steps_per_epoch else ""
    said = (
        f"A Diffusion Transformer of {report.parameters:,} parameters, trained on {report.data} for {step:,} steps of "
        f"{clock.images_per_step:,.0f} images ({step * clock.images_per_step:,.0f} images{epochs})."
    )
    state = None
    if step < report.steps:
        state = missing(
            f"Training is not finished: the log is at step {step:,} of {report.steps:,}. If it is not running, this "
            "command resumes it:",
            report.commands["resume"],
        )
    contents = element("ol", *(element("li", element("a", title, href=f"#{anchor(title)}")) for title in titles))
    notes = [element("p", note, class_="warning") for note in report.notes]
    return element(
        "header",
        element("p", "dit-jax run report", class_="over"),
        element("h1", report.name),
        element("p", said),
        state,
        *notes,
        tiles(report),
        element("nav", contents, aria_label="Contents"),
    )


def tiles(report: Report) -> Html:
    """Returns the few figures that a reader looks for first."""
    speed = column(report.rows, "images_per_s")
    cells = [
        ("training loss, last row", shown("loss", row["loss"]), f"at step {row['step']:,}")
        for row in report.logged[-1:]
    ]
    newest = report.newest("floor", dict)
    if newest is not None:
        for name in figure_names([newest])[:FEATURED]:
            few, n = newest["floor"].get("n"), newest.get("n")
            real = f"real images {shown(name, newest['floor'].get(name))}"
            real += "" if few in (n, None) else f" (n {shown('n', few)})"
            cells.append((name, shown(name, newest[name]), f"at step {newest['step']:,}, {real}, n {shown('n', n)}"))
    cells.append(("parameters", f"{report.parameters:,}", ""))
    finite = sorted(speed[speed > 0])
    if finite:
        cells.append(("images/s", f"{finite[len(finite) // 2]:,.4g}", "median of the log rows"))
    made = (
        element("div", element("dt", name), element("dd", value, element("small", below) if below else None))
        for name, value, below in cells
    )
    return element("dl", *made, class_="tiles")


def config_section(report: Report) -> Html:
    """Returns every key and value, by section."""
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in report.settings:
        first, _, rest = key.rpartition(".")
        groups.setdefault(first or "run", []).append((rest, value if isinstance(value, str) else json.dumps(value)))
    made = (
        element("details", element("summary", name), plain_table([(key, value or "(empty)") for key, value in rows]),
                open="" if name in ("data", "model") else None)
        for name, rows in groups.items()
    )  # fmt: skip
    return element("div", *made, class_="columns")


def plain_table(rows: Sequence[tuple[str, str]]) -> Html:
    """Returns a table of names and values, both as text."""
    made = (element("tr", element("td", name, class_="word"), element("td", value)) for name, value in rows)
    return element("div", element("table", element("tbody", *made), class_="plain"), class_="scroll", tabindex=0)


def origin_section(report: Report) -> Html:
    """Returns the commands that make the run again, and the machines and versions."""
    again = [element("p", "These commands reproduce the run in another workdir:"),
             command(report.commands["again"])]  # fmt: skip
    if report.sessions:
        head = ["from step", "began (UTC)", "devices", "processor", "commit", "command"]
        lines = [
            [shown("", row.get("step")), str(row.get("time", "-")).rstrip("Z").replace("T", " "),
             str(row.get("devices", "-")), f"{row.get('processor', '-')} ({row.get('cores', '-')} cores)",
             str(row.get("commit") or "unknown")[:13], str(row.get("command", "-"))]
            for row in report.sessions
        ]  # fmt: skip
        caption = "The training processes of this run. A plus after a commit means that files differed from it."
        trained = table(head, lines, caption, words=6)
    else:
        trained = missing(
            "The machine that trained this run is not recorded in its workdir (sessions.jsonl). Below is the one that "
            "drew this page."
        )
    here = {
        "devices": report.here.get("devices"),
        "processor": f"{report.here.get('processor')} ({report.here.get('cores')} cores)",
        "system": report.here.get("system"),
        "Python": report.here.get("python"),
        **(report.here.get("versions") or {}),
        "commit": report.here.get("commit") or "not known: the code is not in a git checkout",
    }
    facts = plain_table([(name, str(value)) for name, value in here.items()])
    drew = element("details", element("summary", "The machine and versions that drew this page"), facts)
    return joined([*again, trained, element("p", f"Parameters: {report.parameters:,}."), drew])


def footer(report: Report) -> Html:
    """Returns when the page was drawn, and by which command."""
    return element("footer", f"Drawn {report.drawn} UTC by: {report.commands['report']}")
