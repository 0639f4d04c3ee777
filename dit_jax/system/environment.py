"""Records in the workdir what a run was made with, to interpret its results: machine, versions, commit, command."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dit_jax.system.jsonl import append

SESSIONS = "sessions.jsonl"
PACKAGES = ("dit-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def cores() -> int:
    """Returns how many cores this process may use; a scheduler may have bound it to some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Returns this process's devices, processor and versions, and the commit of its code if that is known."""
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "platform": devices[0].platform,
        "processes": jax.process_count(),
        "processor": processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "commit": commit(),
    }


def record(workdir: Path, step: int) -> None:
    """Appends a line to WORKDIR/sessions.jsonl for a training process that begins at `step`."""
    command = shlex.join(["python", *sys.argv])
    about = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command}
    append(workdir / SESSIONS, about | facts())


def processor() -> str:
    """Returns the name of the processor as Linux gives it, or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def version_of(package: str) -> str | None:
    """Returns the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the commit of this code, with a plus if tracked files differ; None without git or outside a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails in another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
