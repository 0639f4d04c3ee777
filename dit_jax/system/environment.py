"""On what a run was made: machine, versions, commit and command, kept in the workdir for whoever reads its figures."""

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
    """Those that this process may run on; a scheduler may have bound it to some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Of this process: devices, processor, versions, and the commit of the code where that is known."""
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
    """Appends a line to WORKDIR/sessions.jsonl: a training process begins at `step`."""
    command = shlex.join(["python", *sys.argv])
    about = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command}
    append(workdir / SESSIONS, about | facts())


def processor() -> str:
    """The name of the processor, as Linux has it, or as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this code, with a plus if files differ from it; None without git or outside of a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else the checkout is another project's
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
