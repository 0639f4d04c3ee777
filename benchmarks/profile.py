"""Times the kernels of a program while it runs on a GPU, by JAX's profiler."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MOST = 200  # rows that are kept; the rest is one row


def record(run: Callable[[], Any], path: Path) -> None:
    """Runs `run`, which must wait for its end, under the profiler; writes `rows` of its kernels as JSON."""
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (found,) = Path(folder).rglob("*.xplane.pb")
        path.write_text(json.dumps(rows(ProfileData.from_file(str(found)).planes)))


def rows(planes: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns each kind of kernel of the GPUs, longest in total first: name, module of the network, calls, ms in total.

    Kernels whose names differ in their numbers alone are one kind.
    """
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for plane in planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                scope = str(stats.get("tf_op") or stats.get("name") or stats.get("hlo_op") or "")
                total = totals[(plain(event.name), plain(scope))]
                total[0] += 1
                total[1] += event.duration_ns / 1e6
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    table = [{"kernel": k, "scope": s, "calls": int(calls), "ms": ms} for (k, s), (calls, ms) in ordered]
    rest = table[MOST:]
    if rest:
        total = {"calls": sum(row["calls"] for row in rest), "ms": sum(row["ms"] for row in rest)}
        table[MOST:] = [{"kernel": "others", "scope": ""} | total]
    return table


def plain(name: str) -> str:
    """Returns a name without the numbers that XLA and Flax append to make names unique."""
    return re.sub(r"[._]\d+(?=\b|_|/|$)", "", name)
