"""Times variants of the train step (variants.py) in one process: compiled side by side, run in turns, then profiled.

    python -m benchmarks.trials --config.model.dtype=bfloat16 --config.train.batch_size=1024 --out=trials.json
    python -m benchmarks.trials --config=configs/cifar10.py:best --variants="as it is,norms in two kernels"

Their mean losses over the first steps should agree to about three digits.
On a GPU the JSON file also has what each variant's step spends its time on. A variant that does not compile is named.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import commands, compiled, contest, contestant, hlo, machine, profiling
from benchmarks.variants import PATCHES, VARIANTS, Variant
from dit_jax.errors import UserError
from dit_jax.training import loop, sharding

THREADS = 8  # programs that are compiled at a time; XLA tries their kernels one after another
PROFILED = 8  # steps

Held = list[Any]  # the train state and the sums of the log, which each call replaces


def lower(config: str, assignments: Sequence[str], variant: Variant, data: Sequence[np.ndarray]) -> tuple[Any, ...]:
    """Returns (lowered train call, what it starts from, its data on the device, steps of a call)."""
    made = commands.experiment(config, [*assignments, *variant.assignments])
    with PATCHES[variant.patch]():
        held: Held = [made.init_state(), loop.zero_sums()]
        there = [sharding.put_replicated(array, made.mesh) for array in data]
        return made.train_call().lower(*held, *there, np.int32(1)), held, there, made.config.train.steps_per_call


def runner(program: Any, held: Held, data: Sequence[Any], a_call: int) -> Callable[[int], None]:
    """Returns run(steps), which waits for the last one."""

    def run(steps: int) -> None:
        for begin in range(0, steps, a_call):
            *held[:], _ = program(*held, *data, np.int32(min(a_call, steps - begin)))
        jax.block_until_ready(held)

    return run


def in_turns(runs: dict[str, Callable[[int], None]], seconds: float, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of a step of each, timed `repeats` times for about `seconds` in turns A B C, A B C, ...

    Each ran before.
    """
    units = {}
    for name, run in runs.items():
        begin = time.perf_counter()
        run(PROFILED)
        units[name] = PROFILED * max(1, round(seconds / (time.perf_counter() - begin)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(units[name])
            taken[name].append((time.perf_counter() - begin) / units[name])
    return taken


def kernels(program: Any, run: Callable[[int], None], dtype: str) -> list[dict[str, Any]]:
    """Returns `profiling.rows` of a program on the GPU that is here; nothing on another device."""
    device = jax.devices()[0]
    card = next((rates for name, rates in compiled.GPUS.items() if name in device.device_kind), None)
    if device.platform != "gpu" or card is None:
        return []
    measured = profiling.record(lambda: run(PROFILED))
    rates = (card[1], compiled.MATRIX_FLOPS[dtype])
    return profiling.rows(measured, hlo.longest_loop(hlo.read(program.as_text())), PROFILED, rates)


Found = dict[str, dict[str, Any]]  # what is known of each variant


def attempt(found: Found, name: str, job: Callable[[], Any]) -> Any:
    """Returns what a job of one variant does; None, with its error in `found`, if it fails: others are measured."""
    try:
        return job()
    except Exception as error:
        found[name]["error"] = f"{type(error).__name__}: {error}".splitlines()[0]


def prepare(
    found: Found, config: str, assignments: Sequence[str], data: Sequence[np.ndarray]
) -> tuple[dict[str, Any], dict[str, Callable[[int], None]]]:
    """Compiles the variants and runs each for a few steps; returns the programs, and run(steps), of those that do."""
    lowered = {name: attempt(found, name, partial(lower, config, assignments, VARIANTS[name], data)) for name in found}
    with ThreadPoolExecutor(THREADS) as threads:  # nothing else runs while XLA tries kernels
        compiling = {name: threads.submit(one[0].compile) for name, one in lowered.items() if one}
        programs = {name: attempt(found, name, job.result) for name, job in compiling.items()}
    runs = {name: runner(program, *lowered[name][1:]) for name, program in programs.items() if program}
    for name, run in runs.items():
        attempt(found, name, partial(run, PROFILED))
    runs = {name: run for name, run in runs.items() if not found[name]}
    for name in runs:  # all take the same steps, so a kernel that computes something else shows
        sums = lowered[name][1][1]
        found[name]["loss"] = float(sums["loss"] / sums["steps"])
    return programs, runs


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns (flags, assignments). Raises UserError for what cannot be measured."""
    style = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=style)
    made.add_argument("--config", default="configs/cifar10.py:report", help="the experiment, given as to main.py")
    made.add_argument("--variants", default=",".join(VARIANTS), help="which, with commas between; all by default")
    made.add_argument("--repeats", type=int, default=3, help="number of timings of each variant, in turns")
    made.add_argument("--seconds", type=float, default=1.0, help="length of one timing")
    made.add_argument("--out", type=Path, help="JSON file to write")
    flags, assignments = commands.split(made, argv)
    if flags.repeats < 1 or flags.seconds <= 0:
        raise UserError(f"--repeats={flags.repeats} --seconds={flags.seconds}: use numbers above 0")
    if unknown := [name for name in flags.variants.split(",") if name not in VARIANTS]:
        raise UserError(f"--variants={flags.variants}: '{unknown[0]}' is none of {', '.join(VARIANTS)}")
    return flags, assignments


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures and prints; returns what `--out` stores."""
    flags, assignments = parse(argv)
    base = commands.experiment(flags.config, assignments)
    if base.config.model.latents:
        raise UserError("model.latents=True: trials are of pixels; use model.latents=False")
    spec = {"image_shape": base.info.image_shape, "num_classes": len(base.info.class_names)}
    images, labels = contestant.random_data(spec)
    batch, dtype = base.config.train.batch_size, base.config.model.dtype
    found: Found = {name: {} for name in flags.variants.split(",")}
    programs, runs = prepare(found, flags.config, assignments, (images, labels.astype(np.int32)))
    for name, taken in in_turns(runs, flags.seconds, flags.repeats).items():
        found[name]["images_per_s"] = contest.spread([batch / seconds for seconds in taken])
    result = {"config": flags.config, "assignments": assignments, "batch": batch, **machine.describe()}
    result["variants"] = found
    write = partial(commands.write, result, flags.out) if flags.out else lambda: None
    write()  # the speeds are kept even if the profiler never ends
    for name, run in runs.items():
        found[name]["kernels"] = attempt(found, name, partial(kernels, programs[name], run, dtype))
    write()
    told = "{median:,.0f} images/s ({min:,.0f} - {max:,.0f})"
    for name, one in found.items():
        rate = f"{told.format(**one['images_per_s'])}, loss {one['loss']:.4f}" if name in runs else one["error"]
        print(f"{name}: {rate}")
    if not runs:
        raise UserError("no variant could be measured, see above")
    return result


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
