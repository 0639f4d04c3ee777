"""Runs the points of GPU_AGENDA.md, one per call; `benchmarks/gpu.sh` prepares the machine and calls this.

Points c, d and e call main.py, as a user would. `state` holds what a later call resumes from, `out` the results to take
home.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import commands, contest, results, train, variants
from benchmarks import sample as sampling
from benchmarks.pilots import PILOTS
from dit_jax.errors import UserError
from dit_jax.system.stop import OUT_OF_TIME

AGAIN = OUT_OF_TIME  # exit code: not done yet, the same call resumes
TRIES = 2  # of a variant whose call was killed
ENOUGH = 30.0  # seconds: with less left, nothing new is started
A_PAIR, A_CONTEST = 120.0, 180.0  # seconds that a variant and the peers take
DRAWN = ["sample.sampler=ddim", "sample.steps=50", "sample.batch_size=1000"]  # how samples of any run are drawn
GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
REPORT_EPOCHS = (40, 80, 120, 160, 200)  # the epochs in the report's table
BASES = {  # the programs with which variants are compared; most promising first
    "best": ["configs/cifar10.py:best"],
    "report, patch 4": ["configs/cifar10.py:report"],
    "report, patch 2": ["configs/cifar10.py:report", "model.patch_size=2"],
}
STEPS_PER_EPOCH = 195  # 50,000 images at batch 256, without the remainder


@dataclass(frozen=True)
class Call:
    """One call: its folders, when it must end, and whether it is a dry run at toy size."""

    state: Path
    out: Path
    end: float  # time.monotonic()
    dry: bool

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.end - time.monotonic()

    def pick(self, real: Any, toy: Any) -> Any:
        """Returns `real`, or `toy` in a dry run."""
        return toy if self.dry else real

    def short_of(self, seconds: float) -> bool:
        """Whether fewer than `seconds` are left; never in a dry run, which does everything."""
        return self.left < seconds and not self.dry

    def main(self, workdir: Path, *words: str, assignments: Sequence[str] = (), reserve: float = 0.0) -> int:
        """Runs main.py; training ends early enough to keep `reserve` seconds. Raises UserError unless 0 or AGAIN."""
        limit = max(1.0, self.left - reserve - 10.0)
        flags = [f"--config.{assignment}" for assignment in [*assignments, f"train.max_seconds={limit:.0f}"]]
        code = subprocess.run([sys.executable, "main.py", f"--workdir={workdir}", *words, *flags]).returncode
        if code not in (0, AGAIN):
            raise UserError(f"main.py {' '.join([*words, *flags])} ended with code {code}, see above")
        return code

    def data(self) -> list[str]:
        """Returns assignments that say where the data is; a dry run draws `shapes`."""
        if self.dry:
            return ["data.name=shapes", "data.flip=false", f"data.data_dir={self.state / 'data'}"]
        if not (self.state / "data" / "cifar10").exists():
            raise UserError("CIFAR-10 is still missing: carry both halves, one per call (benchmarks/GPU_AGENDA.md)")
        return [f"data.data_dir={self.state / 'data'}"]


TOY = [
    *("model.preset=demo", "model.num_heads=4", "model.width=32", "model.depth=3", "sample.denoising=false"),
    *("train.batch_size=16", "train.steps_per_call=2", "train.log_every=2", "train.sample_every=0"),
    *("optimizer.warmup_steps=0", "classifier.width=8", "classifier.steps=2", "classifier.batch_size=16"),
]


def correctness(call: Call) -> int:
    """Point a: runs the tests marked `gpu`; in a dry run some of them, on the CPU, where they hold as well."""
    as_runs_are = call.pick({"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}, {})  # else tests compile unoptimised
    env = os.environ | as_runs_are | {"DIT_JAX_TEST_GPU": call.pick("1", "dry")}
    some = call.pick([], ["-k", "token or bfloat16 or (ours and 72 and shape0)"])
    some += call.pick(["-n", "6"], [])
    env |= call.pick({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, {})  # the processes share the card
    words = ["-m", "pytest", "-m", "gpu", "-q", "-rs", "--durations=0", "-p", "no:cacheprovider", "tests/gpu", *some]
    return subprocess.run([sys.executable, *words], env=env).returncode


def speed(call: Call) -> int:
    """Point b: times each variant in turns with the current code, then the peers; resumes where a call stopped."""
    path = call.state / "speed.json"
    carried = Path("carry") / path.name
    if carried.exists() and not path.exists() and not call.dry:  # brought back from an earlier machine
        shutil.copy(carried, path)
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep() -> None:
        commands.write(table, path)
        shutil.copy(path, call.out / path.name)

    def pair(name: str, base: str) -> bool:
        """Times a variant once; returns whether time is short."""
        key = f"{base}: {name}"
        begun = table.get(key, {}).get("begun", 0)  # tries that did not end; one may be the call's limit
        if key in table and begun not in range(1, TRIES):
            return False
        if call.short_of(A_PAIR):
            return True
        table[key] = {"error": "it was begun and not ended", "begun": begun + 1}
        keep()
        table[key] = timed(call, base, variants.VARIANTS[name])
        keep()
        print(f"{key}: {table[key].get('gain') or table[key]['error']}", flush=True)
        return False

    def peers(task: str, module: Any) -> bool:
        """Times the peers once; returns whether time is short."""
        found = call.out / f"peers_{task}.json"
        kept = call.state / found.name
        if not kept.exists():
            if call.short_of(A_CONTEST):
                return True
            unfinished = kept.with_suffix(".partial.json")
            module.main(peer_flags(call, task, unfinished))
            unfinished.rename(kept)
        shutil.copy(kept, found)
        return False

    keep()
    names = call.pick(list(variants.VARIANTS), ["attention pad_72"])
    jobs = [partial(pair, name, base) for name in names for base in call.pick(BASES, ["report, patch 4"])]
    jobs[1:1], jobs[3:3] = [partial(peers, "train", train)], [partial(peers, "sample", sampling)]
    return AGAIN if any(job() for job in jobs) else 0


def timed(call: Call, base: str, variant: variants.Variant) -> dict[str, Any]:
    """Returns the images/s of the current code and a variant, in turns, and their ratio; or why it could not run."""
    recipe, *settings = BASES[base]
    batch = call.pick(512, 16)
    settings += ["model.dtype=bfloat16", f"train.batch_size={batch}"]
    settings += call.pick([], ["model.depth=1", "model.width=32", "train.steps_per_call=2"])
    both = []
    for name, more, env, patched in (
        (contest.OURS, (), {}, ""),
        ("variant", variant.assignments, variant.env, variant.patch),
    ):
        words = [*settings, *more]
        made = commands.experiment(recipe, words)
        (one,) = commands.contestants("train", made, recipe, words, peers="")
        kernels = call.state / f"kernels_{name}.json"
        kernels.unlink(missing_ok=True)
        spec = one.spec | {"patch": patched, "profile": str(kernels)}
        both.append(contest.Contestant(name, one.module, spec, one.env | commands.share() | env, one.multiple))
    with contest.running(both) as processes:
        if len(processes) < 2:
            return {"error": "it could not run, see log.txt"}
        units = [contest.units_for(process, call.pick(1.5, 0.05)) for process in processes]
        times: list[list[float]] = [[], []]
        for _ in range(call.pick(3, 1)):
            for process, count, kept in zip(processes, units, times, strict=True):
                kept.append(process.run(count)["seconds"] / count)
    rates = [contest.spread([batch / seconds for seconds in kept]) for kept in times]
    kernels = [path for one in both if (path := Path(one.spec["profile"])).exists()]
    kept = {path.stem: json.loads(path.read_text()) for path in kernels}  # written when the processes end
    return {"as_it_is": rates[0], "variant": rates[1], "gain": rates[1]["median"] / rates[0]["median"]} | kept


def peer_flags(call: Call, task: str, out: Path) -> list[str]:
    """Returns the command line of `benchmarks.train` or `.sample`."""
    if call.dry:
        small = ["--config.model.depth=1", "--config.model.width=32", "--config.train.steps_per_call=2"]
        return ["--batch=2", "--dtype=float32", "--peers=", "--repeats=1", "--seconds=0.05", f"--out={out}", *small]
    steps = ["--config.sample.steps=50"] if task == "sample" else []
    return ["--batch=1024", "--dtype=bfloat16", "--peers=torch,torch-compile", "--repeats=3", f"--out={out}", *steps]


def report(call: Call) -> int:
    """Point c: trains cifar10.py:report for 200 epochs; draws and judges samples at the report's epochs."""
    run, n = call.state / "report", call.pick(5_000, 20)
    per_epoch = call.pick(STEPS_PER_EPOCH, 1)
    if train_judge(call):
        return AGAIN
    for step in (epoch * per_epoch for epoch in call.pick(REPORT_EPOCHS, (2,))):
        words = [*call.data(), *call.pick([], TOY), f"train.steps={step}", f"train.checkpoint_every={10 * per_epoch}"]
        if judged(run, step):
            continue
        if call.main(run, "--config=configs/cifar10.py:report", assignments=words, reserve=ENOUGH):
            return AGAIN
        if call.short_of(ENOUGH):
            return AGAIN
        judge(call, run, step, n)
    return finish(call, run, "cifar10_report_gpu", "cifar10.py:report")


def train_judge(call: Call) -> int:
    """Trains the classifier of `best`, whose features judge all runs, so that their figures can be compared."""
    folder = call.state / "judge"
    if (folder / "classifier" / "accuracy.json").exists():
        return 0
    words = [*call.data(), *call.pick([], TOY)]
    return call.main(folder, "--config=configs/cifar10.py:best", "--mode=train_classifier", assignments=words)


def judge(call: Call, run: Path, step: int, n: int, *settings: str) -> None:
    """Draws n images of a run and adds their figures, by the judge's features, to the run's evaluations.jsonl."""
    out = run / "judged"
    words = [*DRAWN, *call.pick([], ["sample.steps=2"]), *settings, f"sample.n={n}", "sample.denoising=false"]
    call.main(run, "--mode=sample", f"--out={out}", assignments=words)
    folder = call.state / "judge"
    words = [*call.data(), *call.pick([], TOY), "evaluate.features=classifier"]
    samples = out / "samples.npz"
    call.main(folder, "--config=configs/cifar10.py:best", "--mode=evaluate", f"--images={samples}", assignments=words)
    row = json.loads((folder / "evaluation_images.json").read_text())
    about = {"step": step, "weights": "ema"} | results.drawn_as(out)
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(row | about) + "\n")


def judged(run: Path, step: int, **settings: Any) -> dict[str, Any] | None:
    """Returns the newest row of evaluations.jsonl for a step and these settings, None if there is none."""
    path = run / "evaluations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    fits = [row for row in rows if row["step"] == step and all(row[key] == value for key, value in settings.items())]
    return fits[-1] if fits else None


def pilots(call: Call) -> int:
    """Point d: short runs of `best`, mostly with one thing changed, each judged; writes a table of those done."""
    steps, n = call.pick(3_900, 2), call.pick(2_000, 20)
    if train_judge(call):
        return AGAIN
    table = []
    for name, changes in call.pick(PILOTS, dict([*PILOTS.items()][-1:])).items():
        run = call.state / "pilots" / re.sub("[^a-z0-9]+", "_", name)
        if not judged(run, steps):
            words = [*call.data(), "model.patch_size=4", "train.sample_every=0", f"train.steps={steps}"]
            words += [*call.pick([], TOY), *changes]
            if call.short_of(2 * ENOUGH):
                return AGAIN
            if call.main(run, "--config=configs/cifar10.py:best", assignments=words, reserve=ENOUGH):
                return AGAIN
            judge(call, run, steps, n, "sample.guidance=1.5")
        row, seconds = judged(run, steps) or {}, results.training_seconds(run)
        kept = {key: row.get(key) for key in ("fd_classifier", "accuracy_classifier", "n", "guidance")}
        table.append({"pilot": name, "changes": changes, "training_seconds": seconds} | kept)
        commands.write({"pilots": table}, call.out / "pilots.json")
    return 0


def best(call: Call) -> int:
    """Point e: trains cifar10.py:best, tunes its guidance scale at n = 5,000, then evaluates it at n = 50,000."""
    run, (few, many) = call.state / "best", call.pick((5_000, 50_000), (20, 40))
    guidances = call.pick(GUIDANCES, GUIDANCES[:1])
    if train_judge(call):
        return AGAIN
    words = [*call.data(), *call.pick([], [*TOY, "train.steps=4"])]
    if call.main(run, "--config=configs/cifar10.py:best", assignments=words, reserve=ENOUGH):
        return AGAIN
    if not (run / "classifier").exists():  # the judge is a classifier of `best`, so it fits this run
        shutil.copytree(call.state / "judge" / "classifier", run / "classifier")
    step = results.last_step(run)
    evaluate = [*DRAWN, "evaluate.features=classifier", *call.pick([], ["sample.steps=2"])]
    for guidance in guidances:
        if judged(run, step, guidance=guidance, n=few):
            continue
        if call.short_of(2 * ENOUGH):
            return AGAIN
        call.main(run, "--mode=evaluate", assignments=[*evaluate, f"evaluate.n={few}", f"sample.guidance={guidance}"])
    rows = [row for guidance in guidances if (row := judged(run, step, guidance=guidance, n=few))]
    tuned = min(rows, key=lambda row: row["fd_classifier"])["guidance"]
    if not judged(run, step, guidance=tuned, n=many):
        if call.short_of(3 * ENOUGH):
            return AGAIN
        call.main(run, "--mode=evaluate", assignments=[*evaluate, f"evaluate.n={many}", f"sample.guidance={tuned}"])
    return finish(call, run, "cifar10_best_gpu", "cifar10.py:best", f"sample.guidance={tuned}")


def finish(call: Call, run: Path, name: str, recipe: str, *settings: str) -> int:
    """Writes samples, and the files of results/NAME, to `out`."""
    words = [*DRAWN, *settings, f"sample.n={call.pick(5_000, 20)}", "sample.denoising=false"]
    call.main(run, "--mode=sample", assignments=[*words, *call.pick([], ["sample.steps=2"])])
    flags = [f"--name={name}", f"--recipe={recipe}", f"--per_class={call.pick(200, 2)}"]
    results.main([str(run), f"--out={call.out}", *flags])
    shutil.copy(run / "samples" / "samples.npz", call.out / "samples.npz")
    return 0


POINTS: dict[str, Callable[[Call], int]] = {"a": correctness, "b": speed, "c": report, "d": pilots, "e": best}


def main(argv: Sequence[str]) -> int:
    """Runs a point and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("point", choices=POINTS)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=530.0)
    parser.add_argument("--dry", action="store_true", help="a dry run at toy size")
    flags = parser.parse_args(argv)
    for folder in (flags.state, flags.out):
        folder.mkdir(parents=True, exist_ok=True)
    code = POINTS[flags.point](Call(flags.state, flags.out, time.monotonic() + flags.seconds, flags.dry))
    word = {0: "done", AGAIN: "not done, the same call resumes it"}.get(code, "failed")
    print(f"point {flags.point}: {word}")
    return code


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
