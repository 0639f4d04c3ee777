"""Runs contestants, each in its own process, in turns (A B A B ...), and compares them."""

import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_jax.errors import UserError

OURS = "dit-jax"


@dataclass(frozen=True)
class Contestant:
    """A module to run with a spec.

    `multiple` is how many units it does at once, `comparable` whether its products are the ones that are counted.
    """

    name: str
    module: str
    spec: dict[str, Any]
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    multiple: int = 1
    comparable: bool = True


class Process:
    """A running contestant; `told` is what it reported when it was ready."""

    def __init__(self, contestant: Contestant):
        self.contestant = contestant
        self.child = subprocess.Popen(
            [sys.executable, "-m", contestant.module, json.dumps(contestant.spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | contestant.env,
        )
        self.told = self._answer()

    def run(self, units: int) -> dict[str, Any]:
        """Does `units` units of work; returns {"seconds", "peak_bytes"}."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{units}\n")
        self.child.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.child.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            self.close()
            raise UserError(f"{self.contestant.name} ended with code {self.child.returncode}; its last lines say why")
        return json.loads(line)


@contextmanager
def running(contestants: Sequence[Contestant]) -> Iterator[list[Process]]:
    """Starts all, one after another. One that cannot start is named and left out; ours raises UserError instead."""
    processes: list[Process] = []
    try:
        for contestant in contestants:
            try:
                processes.append(Process(contestant))
            except UserError as error:
                if contestant.name == OURS:
                    raise
                print(f"left out: {error}", file=sys.stderr)
        yield processes
    finally:
        for process in processes:
            process.close()


def cold_and_cached(ours: Contestant) -> tuple[Contestant, dict[str, Any]]:
    """Starts ours with an empty compilation cache; returns (ours with that cache, now filled; its cold times in s)."""
    folder = tempfile.mkdtemp(prefix="dit-jax-bench-")
    ours = dataclasses.replace(ours, env=ours.env | {"JAX_COMPILATION_CACHE_DIR": folder})
    with running([ours]) as (process,):
        return ours, {"start_cold_s": process.told["start_s"], "compile_cold_s": process.told["compile_s"]}


@dataclass
class Timed:
    """The answers of a contestant, each to a request of `units` units; `process` is the one of the first answer."""

    process: Process
    units: int
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def together(contestants: Sequence[Contestant], repeats: int, seconds: float) -> list[Timed]:
    """Times contestants in turns, in processes that all stay; those that wait keep their memory."""
    with running(contestants) as processes:
        timed = [Timed(process, units_for(process, seconds)) for process in processes]
        for _ in range(repeats):
            for one in timed:
                one.answers.append(one.process.run(one.units))
    return timed


def apart(contestants: Sequence[Contestant], repeats: int, seconds: float) -> list[Timed]:
    """Times contestants in turns, in processes that start for each turn and are alone on the machine, as a run is."""
    timed: dict[str, Timed] = {}
    for _ in range(repeats):
        for contestant in contestants:
            with running([contestant]) as processes:
                for process in processes:  # none if it could not start
                    units = units_for(process, seconds)
                    one = timed.setdefault(contestant.name, Timed(process, units))
                    one.answers.append(process.run(one.units))
    return [*timed.values()]


def compare(
    contestants: Sequence[Contestant],
    images_per_unit: int,
    flops_per_image: int,
    repeats: int,
    seconds: float,
    measure: Callable[[Sequence[Contestant], int, float], list[Timed]] = together,
) -> dict[str, Any]:
    """Returns one row per contestant, and the machine's peak: the fastest matrix product that any of them measured."""
    ours, cold = cold_and_cached(contestants[0])
    cache = Path(ours.env["JAX_COMPILATION_CACHE_DIR"])
    try:
        timed = measure([ours, *contestants[1:]], repeats, seconds)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    peak = max(one.process.told["matmul_flops"] for one in timed)
    rows = [row_of(one.process, one.units, one.answers, images_per_unit, flops_per_image, peak) for one in timed]
    rows[0] |= cold
    for row in rows:
        row["ours_over_this"] = rows[0]["images_per_s"]["median"] / row["images_per_s"]["median"]
    return {"matmul_peak_flops": peak, "repeats": repeats, "rows": rows}


def units_for(process: Process, seconds: float) -> int:
    """Returns how many units take about `seconds` after a warm-up; a multiple of what the contestant does at once."""
    at_once = process.contestant.multiple
    took = process.run(at_once)["seconds"]
    if took >= seconds:  # long enough that warming up hardly counts
        return at_once
    took = process.run(at_once)["seconds"]
    return at_once * max(1, round(seconds / took))


def row_of(
    process: Process, units: int, answers: Sequence[dict[str, Any]], images: int, flops: int, peak: float
) -> dict[str, Any]:
    """Returns the figures of one contestant."""
    times = [answer["seconds"] / units for answer in answers]
    rate = images / statistics.median(times)
    counted = process.contestant.comparable
    return {
        "name": process.contestant.name,
        "images_per_s": spread([images / time for time in times]),
        "step_ms": spread([1000 * time for time in times]),
        "flops": rate * flops if counted else None,
        "mfu": rate * flops / peak if counted else None,
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        "units": units,
        "env": process.contestant.env,
        **process.told,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the least and the most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "": lambda row: row["name"],
    "images/s": lambda row: "{median:.1f} ({min:.1f} - {max:.1f})".format(**row["images_per_s"]),
    "step, ms": lambda row: f"{row['step_ms']['median']:.0f}",
    "GFLOP/s": lambda row: "-" if row["flops"] is None else f"{row['flops'] / 1e9:,.0f}",
    "of peak": lambda row: "-" if row["mfu"] is None else f"{row['mfu']:.0%}",
    "memory, GiB": lambda row: f"{row['peak_bytes'] / 2**30:.2f}",
    "compile, s (cached)": lambda row: (
        f"{row['compile_cold_s']:.1f} ({row['compile_s']:.1f})"
        if "compile_cold_s" in row
        else f"{row['compile_s']:.1f}"
    ),
    "ours / this": lambda row: f"{row['ours_over_this']:.2f}",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table with aligned columns."""
    cells = [list(COLUMNS), *([make(row) for make in COLUMNS.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def installed(*names: str) -> bool:
    """Whether every one of these packages can be imported."""
    return all(importlib.util.find_spec(name) for name in names)


def with_env(contestant: Contestant, env: dict[str, str]) -> Contestant:
    """Returns the contestant with more environment variables."""
    return dataclasses.replace(contestant, env=contestant.env | env)
