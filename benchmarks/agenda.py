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
from pathlib import Path
from typing import Any

from benchmarks import commands, results
from benchmarks.pilots import PILOTS
from dit_jax.data import cifar10
from dit_jax.data.preparation import is_prepared
from dit_jax.errors import UserError
from dit_jax.system.stop import OUT_OF_TIME

AGAIN = OUT_OF_TIME  # exit code: not done yet, the same call resumes
ENOUGH = 30.0  # seconds: with less left, nothing new is started
A_JOB = 170.0  # seconds that a job of point b may take
DRAWN = ["sample.sampler=ddim", "sample.steps=50", "sample.batch_size=1000"]  # how samples of any run are drawn
GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
REPORT_EPOCHS = (40, 80, 120, 160, 200)  # the epochs in the report's table
REPORT = ["--config.model.dtype=bfloat16", "--config.train.batch_size=1024"]
BEST = ["--config=configs/cifar10.py:best"]
LONG = ["--config.train.batch_size=512", "--config.model.patch_size=2"]
PEERS = ["--batch=1024", "--dtype=bfloat16", "--peers=torch,torch-compile", "--repeats=3"]


def variants(*some: str) -> str:
    """Returns the flag for these variants and those that every trial has."""
    return f"--variants={','.join(['as it is', 'all', 'bias and GELU in the product', *some])}"


ONE_KERNEL = variants("attention in one kernel", "norms in one kernel", "GELU's sums as well")
OTHERS = variants("attention in one kernel", "norms in two kernels")
SPEEDS = [  # name of the file, module, arguments; in order of worth
    ("report_4", "benchmarks.trials", [*REPORT, ONE_KERNEL]),
    ("peers_train", "benchmarks.train", PEERS),
    ("best_4", "benchmarks.trials", [*BEST, "--config.model.patch_size=4", OTHERS]),
    ("peers_sample", "benchmarks.sample", [*PEERS, "--config.sample.steps=50"]),
    ("best_2", "benchmarks.trials", [*BEST, variants("norms in two kernels")]),
    ("models_4", "benchmarks.trials", [*REPORT, "--variants=as it is,6 heads of 64,no token: adaLN-Zero"]),
    ("report_2", "benchmarks.trials", [*REPORT[:1], *LONG, variants("norms in one kernel")]),
]
SMALLER = {
    "benchmarks.trials": ["--config.train.batch_size=2", "--variants=as it is,norms in two kernels"],
    "benchmarks.train": ["--batch=2", "--dtype=float32", "--peers="],
    "benchmarks.sample": ["--batch=2", "--dtype=float32", "--peers=", "--config.sample.steps=2"],
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
        if not is_prepared(self.state / "data" / "cifar10" / cifar10.VERSION):
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
    some = call.pick([], ["-k", "token or bfloat16 or (ours and shape0)"])
    some += call.pick(["-n", "6"], [])
    env |= call.pick({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, {})  # the processes share the card
    words = ["-m", "pytest", "-m", "gpu", "-q", "-rs", "--durations=0", "-p", "no:cacheprovider", "tests/gpu", *some]
    return subprocess.run([sys.executable, *words], env=env).returncode


def speed(call: Call) -> int:
    """Point b: times the variants with each recipe, and the peers; what was measured before is not measured again.

    A job that was begun before, and failed or was killed, goes last.

    Raises:
      UserError: some could not be measured; the others were.
    """
    failed = []
    dry = ["--config.model.depth=1", "--config.model.width=32", "--config.train.steps_per_call=2", "--seconds=0.05"]
    begun = lambda job: (call.state / f"{job[0]}.begun").exists()  # noqa: E731
    for name, module, words in sorted(call.pick(SPEEDS, [*SPEEDS[:2], SPEEDS[3]]), key=begun):
        kept, found = call.state / f"{name}.json", call.out / f"{name}.json"
        carried = Path("carry") / kept.name  # brought back from an earlier machine
        if carried.exists() and not kept.exists() and not call.dry:
            shutil.copy(carried, kept)
        if not kept.exists():
            if call.short_of(A_JOB):
                return AGAIN
            unfinished = kept.with_suffix(".partial.json")
            small = call.pick([], [*dry, "--repeats=1", *SMALLER[module]])
            run = [sys.executable, "-m", module, f"--out={unfinished}", *words, *small]
            (call.state / f"{name}.begun").touch()
            try:
                subprocess.run(run, check=True, timeout=None if call.dry else call.left)
            except subprocess.SubprocessError:
                failed.append(name)
                continue
            unfinished.rename(kept)
        shutil.copy(kept, found)
    if failed:
        raise UserError(f"{' and '.join(failed)} could not be measured, see above")
    return 0


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
    """Point e: trains `best` with patches of 4, tunes its guidance at n = 5,000, then evaluates it at n = 50,000."""
    run, (few, many) = call.state / "best", call.pick((5_000, 50_000), (20, 40))
    guidances = call.pick(GUIDANCES, GUIDANCES[:1])
    if train_judge(call):
        return AGAIN
    words = [*call.data(), "model.patch_size=4", *call.pick([], [*TOY, "train.steps=4"])]  # with 2 it takes 27 minutes
    if call.main(run, "--config=configs/cifar10.py:best", assignments=words, reserve=ENOUGH):
        return AGAIN
    if not (run / "classifier").exists():  # the judge is a classifier of `best`, so it fits this run
        shutil.copytree(call.state / "judge" / "classifier", run / "classifier")
    step = results.last_step(run)
    evaluate = [*DRAWN, "evaluate.features=classifier", *call.pick([], ["sample.steps=2", "evaluate.loss_n=20"])]
    for guidance in guidances:
        if judged(run, step, guidance=guidance, n=few):
            continue
        if call.short_of(2 * ENOUGH):
            return AGAIN
        words = [*evaluate, f"evaluate.n={few}", f"sample.guidance={guidance}", "evaluate.loss_n=0"]
        call.main(run, "--mode=evaluate", assignments=words)
    rows = [row for guidance in guidances if (row := judged(run, step, guidance=guidance, n=few))]
    tuned = min(rows, key=lambda row: row["fd_classifier"])["guidance"]
    if not judged(run, step, guidance=tuned, n=many):
        if call.short_of(3 * ENOUGH):
            return AGAIN
        call.main(run, "--mode=evaluate", assignments=[*evaluate, f"evaluate.n={many}", f"sample.guidance={tuned}"])
    return finish(call, run, "cifar10_best_gpu", "cifar10.py:best, patches of 4", f"sample.guidance={tuned}")


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
