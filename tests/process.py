"""Runs main.py in its own process, on a model that compiles in seconds, and reads what it leaves behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax

from dit_jax.experiment import Experiment
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from dit_jax.training.checkpoint import Checkpointer

SMALL = ["model.patch_size=8", "model.width=16", "model.depth=1", "model.num_heads=2", "model.num_kv_heads=1",
         "model.class_table_width=8", "train.steps_per_call=2", "train.sample_every=0"]  # fmt: skip


def start(data_dir, workdir, cache, *settings, flags=(), environ=None, program="main.py", **options):
    """Starts training; `cache` is the folder for compiled programs, `program` may be a script that runs main.py."""
    settings = [f"--config.{setting}" for setting in (*SMALL, f"data.data_dir={data_dir}", *settings)]
    command = [
        sys.executable,
        str(program),
        "--config",
        "configs/shapes.py",
        "--workdir",
        str(workdir),
        *settings,
        *flags,
    ]
    cached = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environ = os.environ | cached | (environ or {})
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, **options)


@contextlib.contextmanager
def as_in_a_terminal():
    """Processes started within do not ignore Ctrl-C, as a shell's background jobs and what they start do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start_pair(*arguments, slurm=False, flags=(), first=None, second=()):
    """Starts two processes of two devices each that form one run, joined by flags or as two Slurm tasks.

    `first` has `Popen` options for the first process only, `second` flags for the second only.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair = []
    for i in range(2):
        environ, more = {"JAX_NUM_CPU_DEVICES": "2"}, []
        if slurm:
            environ |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
            environ |= {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
        else:
            more = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"]
        options = {"stdout": subprocess.DEVNULL} | (first or {} if i == 0 else {})  # C++ code lists joined processes
        flags_here = [*more, *flags, *(second if i else ())]
        pair.append(start(*arguments, flags=flags_here, environ=environ, **options))
    return pair


def finish(process):
    """Waits for a process that ends by itself; returns (exit code, lines on stderr)."""
    try:
        _, told = process.communicate(timeout=1200)  # usually a minute or two; longer on a slow or busy machine
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, told.splitlines()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for(condition, process):
    """Waits until `condition()` holds or the process has ended, whichever comes first."""
    while not condition() and process.poll() is None:
        time.sleep(0.0005)


def last_row(workdir):
    """Returns the step of the newest row of metrics.jsonl, or 0 if there is none."""
    path = workdir / "metrics.jsonl"
    rows = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return json.loads(rows[-1])["step"] if rows else 0


def checkpoints(workdir):
    """Returns the steps of the complete checkpoints."""
    return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())


def final_state(workdir):
    experiment = Experiment(resolve(configs.read(workdir)))
    with Checkpointer(workdir, 3, read_only=True) as checkpointer:
        return jax.device_get(checkpointer.restore(experiment.abstract_state()))
