"""Measures the kernels of a program while it runs on a GPU, and compares them with what memory and arithmetic allow."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.hlo import Kernel

Times = dict[str, tuple[int, float]]  # kernel: calls, ms in total


def record(run: Callable[[], Any]) -> Times:
    """Runs `run`, which must wait for its end, under JAX's profiler; returns the kernels of the first GPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (found,) = Path(folder).rglob("*.xplane.pb")
        return times(ProfileData.from_file(str(found)).planes)


def times(planes: Iterable[Any]) -> Times:
    """Returns the kernels that ran in the streams of the first GPU."""
    totals: dict[str, list[Any]] = defaultdict(lambda: [0, 0.0])
    cards = sorted((plane for plane in planes if plane.name.startswith("/device:GPU")), key=lambda plane: plane.name)
    for plane in cards[:1]:
        for line in plane.lines:
            for event in line.events if line.name.startswith("Stream") else ():
                totals[event.name][0] += 1
                totals[event.name][1] += event.duration_ns / 1e6
    return {name: (calls, ms) for name, (calls, ms) in totals.items()}


def rows(measured: Times, compiled: Sequence[Kernel], steps: int, rates: tuple[float, float]) -> list[dict[str, Any]]:
    """Returns what a step spends its time on, longest first: what, calls, ms, and ms at best.

    `rates` are the bytes and FLOPs that the card moves and computes in a second. Kernels of one purpose in different
    blocks are one row. Products, cuDNN's attention and collectives, whose kernels have names of their own, are a row
    each; so are all kernels that the program does not name (`unnamed`). At best, cuDNN's attention only moves bytes.
    XLA runs equal kernels under the name of one of them, so a row may have the time of others, which then have none.
    """
    table: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    purposes = {}
    for kernel in compiled:
        purpose = f"{kernel.kind}s" if kernel.kind == "product" else kernel.kind
        purpose = purpose_of(kernel.source) if kernel.kind == "other" else purpose
        table[purpose][2] += kernel.seconds(*rates) * 1e3
        if kernel.kind == "other":
            purposes[re.sub(r"\W", "_", kernel.name)] = purpose
            if kernel.source.endswith("/pallas_call"):  # runs under the name that its author gave it
                purposes[kernel.source.split("/")[-2]] = purpose
    for name, (calls, ms) in measured.items():
        purpose = purposes.get(name) or purposes.get(re.sub(r"__\d+$", "", name))
        purpose = purpose or next((word for part, word in LIBRARIES.items() if part in name), "unnamed")
        table[purpose][0] += calls / steps
        table[purpose][1] += ms / steps
    ordered = sorted(table.items(), key=lambda item: -max(item[1][1:]))
    return [{"what": what, "calls": calls, "ms": ms, "at_best_ms": best} for what, (calls, ms, best) in ordered]


LIBRARIES = {  # part of a kernel's name: what it does
    **{"sdpa": "attention", "cudnn": "attention", "nccl": "collective"},
    **{"nvjet": "products", "gemm": "products", "cutlass": "products"},
}


def purpose_of(source: str) -> str:
    """Returns where a kernel comes from in the network, the same for every block.

    `jit(call)/while/body/transpose(jvp(DiT))/DiT._blocks/block_3/mlp/Dense_0/reduce_sum` is `backward: mlp/Dense_0/
    reduce_sum`.
    """
    inside = source.rpartition("while/body/")[2]
    direction = "backward: " if "transpose(" in inside else "forward: " if "jvp(" in inside else ""
    return direction + re.sub(r"(DiT\.\w+/)|(block_\d+/)|(transpose\(jvp\(\w*\)\)/)|(jvp\(\w*\)/)", "", inside)
