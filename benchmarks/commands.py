"""The commands `benchmarks.train` and `benchmarks.sample`: their flags, tables, contestants and output."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import contest, machine
from benchmarks.contest import Contestant
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from dit_jax.system import huge_pages
from dit_jax.system.files import replacing

# name: (network of torch_dit.py, compiled, tuned)
PEERS = {
    "torch": ("plain", False, False),
    "torch-compile": ("plain", True, False),
    "torch-tuned": ("plain", False, True),
    "torch-compile-tuned": ("plain", True, True),
    "diffusers": ("diffusers", False, False),
    "diffusers-compile": ("diffusers", True, False),
}
THEIRS = {"model.conditioning": "token", "model.qk_norm": False, "model.long_skips": False, "train.dropout": 0.0}
THEIR_SAMPLING = {"sample.sampler": "ddim"}
DEFAULT_PEERS = ("torch", "torch-compile", "torch-tuned", "torch-compile-tuned", "diffusers")


def parser(about: str) -> argparse.ArgumentParser:
    """Returns a parser of the flags that both commands take; `--config.KEY=VALUE` is left to `parse`."""
    made = argparse.ArgumentParser(
        description=about,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any key of configs/default.py is a flag too, such as --config.model.patch_size=2.",
    )
    made.add_argument("--config", default="configs/cifar10.py:report", help="the experiment, given as to main.py")
    made.add_argument("--batch", default="16,64", help="batch sizes, with one table each")
    made.add_argument("--dtype", default="float32,bfloat16", help="dtypes of matrix products, with one table each")
    known = ", ".join(PEERS)
    made.add_argument("--peers", default=",".join(DEFAULT_PEERS), help=f"any of {known}; empty for none")
    made.add_argument("--repeats", type=int, default=5, help="number of timings of each contestant, in turns")
    made.add_argument("--seconds", type=float, default=3.0, help="length of one timing")
    made.add_argument("--apart", action="store_true", help="run each turn in a new process, alone on the machine")
    made.add_argument("--out", type=Path, help="JSON file to write")
    return made


def split(made: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns (flags, `key=value` assignments). Raises UserError for an argument that is neither."""
    flags, rest = made.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            raise UserError(f"{argument} is not an argument; --help lists them, and config keys are --config.KEY=VALUE")
    return flags, [argument.removeprefix("--config.") for argument in rest]


def parse(made: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Does the same as `split` for `parser`; also raises UserError for an unknown peer or a number not above 0."""
    flags, assignments = split(made, argv)
    for peer in filter(None, flags.peers.split(",")):
        if peer not in PEERS:
            raise UserError(f"--peers={peer} is not known; use any of {', '.join(PEERS)}")
    if flags.repeats < 1 or flags.seconds <= 0:
        raise UserError(f"--repeats={flags.repeats} --seconds={flags.seconds}: use numbers above 0")
    return flags, assignments


def cells(flags: argparse.Namespace) -> list[tuple[str, int]]:
    """Returns the (dtype, batch size) of every table."""
    try:
        batches = [int(batch) for batch in flags.batch.split(",")]
    except ValueError:
        raise UserError(f"--batch={flags.batch}: use whole numbers separated by commas, such as 16,64") from None
    return list(itertools.product(flags.dtype.split(","), batches))


def experiment(config: str, assignments: Sequence[str]) -> Experiment:
    """Builds the experiment as main.py would."""
    made = configs.load(config)
    configs.override(made, assignments)
    return Experiment(resolve(made))


def contestants(
    task: str, made: Experiment, config: str, assignments: list[str], peers: str, apart: bool = False
) -> list[Contestant]:
    """Returns ours, and the peers that can run here: PyTorch must be installed, and the network one that they have.

    With `apart`, they are never on the machine together, so ours need not leave them any memory.
    """
    c, s = made.config.model, made.config.sample
    batch = made.config.train.batch_size if task == "train" else s.batch_size
    shape = {"image_shape": made.info.image_shape, "num_classes": len(made.info.class_names), "batch_size": batch}
    spec = {"task": task, "dtype": c.dtype, "config": config, "assignments": assignments, **shape}
    names = [name for name in peers.split(",") if name]
    card = machine.only_cards(1)  # PyTorch's processes use one
    env = huge_pages.wanted(os.environ) | card | (share() if names and not apart else {})  # huge pages as in main.py
    ours = Contestant(contest.OURS, "benchmarks.ours", spec, env, multiple=at_once(task, made))
    here = dict(configs.leaves(made.config))
    theirs = THEIRS | (THEIR_SAMPLING if task == "sample" else {})
    for key in [key for key, value in theirs.items() if names and here[key] != value]:
        print(f"no peers: they have {key}={theirs[key]}, ours is {here[key]}", file=sys.stderr)
        names = []
    keys = ("patch_size", "width", "depth", "num_heads", "num_kv_heads", "mlp_ratio", "class_table_width")
    spec |= {key: c[key] for key in keys} | {"sampler_steps": s.steps, "guidance": s.guidance}
    peers_here = (peer for name in names if (peer := make_peer(name, spec)))
    return [ours, *(contest.with_env(peer, card) for peer in peers_here)]


def share() -> dict[str, str]:
    """Returns the environment in which ours leaves GPU memory to others; JAX's default is three quarters at once."""
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"} if machine.gpus() else {}


def at_once(task: str, made: Experiment) -> int:
    """Returns how many units of work ours does in one dispatch."""
    return made.config.train.steps_per_call if task == "train" else 1


def make_peer(name: str, spec: dict[str, Any]) -> Contestant | None:
    """Returns a PyTorch contestant, or prints why and returns None if its packages are not installed."""
    network, compiled, tuned = PEERS[name]
    needs = ("torch", "diffusers") if network == "diffusers" else ("torch",)
    if not contest.installed(*needs):
        print(f"left out: {name} needs {' and '.join(needs)} (requirements-peers.txt)", file=sys.stderr)
        return None
    spec = spec | {"network": network, "compile": compiled, "tuned": tuned}
    env = machine.tuned_for_torch() if tuned else {}
    return Contestant(name, "benchmarks.torch_worker", spec, env, comparable=network == "plain")


def run(
    task: str,
    flags: argparse.Namespace,
    assignments: Sequence[str],
    batch_key: str,
    flops: Callable[[Experiment], int],
) -> dict[str, Any]:
    """Measures and prints every table, and after each writes the results so far to `--out`."""
    result: dict[str, Any] = {"task": task, **machine.describe(), "cells": []}
    print(f"{result['processor']}; {', '.join(result['gpus']) or 'no GPU'}; commit {result['commit']}")
    for dtype, batch in cells(flags):
        more = [*assignments, f"model.dtype={dtype}", f"{batch_key}={batch}"]
        made = experiment(flags.config, more)
        those = contestants(task, made, flags.config, more, flags.peers, flags.apart)
        measure = contest.apart if flags.apart else contest.together
        found = contest.compare(those, batch, flops(made), flags.repeats, flags.seconds, measure)
        cell = {"dtype": dtype, "batch": batch, "flops_per_image": flops(made), "config": flags.config}
        result["cells"].append(cell | {"assignments": more} | found)
        peak = found["matmul_peak_flops"] / 1e9
        print(f"\n{task}, {dtype}, batch {batch}: {flops(made) / 1e9:.2f} GFLOP per image, peak {peak:,.0f} GFLOP/s\n")
        print(contest.table(found["rows"]), flush=True)
        if flags.out:
            write(result, flags.out)
    return result


def write(result: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def guarded(main: Callable[[Sequence[str]], Any]) -> int:
    """Runs `main`; returns its exit code if it returns an int, else 0; after a UserError, prints it and returns 2."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0
