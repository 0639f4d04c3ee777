"""Describes what a figure was measured on: processor, cores, card, versions, commit; and tunes PyTorch for it."""

import atexit
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dit_jax.system import huge_pages
from dit_jax.system.environment import commit, cores, version_of

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that matter for matrix products


def processor() -> str:
    """Returns the processor's name, its cores, and which of `INSTRUCTIONS` it has."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    known = ", ".join(name for name in INSTRUCTIONS if name in flags) or "no AVX2"
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{cores()} cores of {name} ({known})"


def gpus() -> list[str]:
    """Returns name, driver and memory of each card that nvidia-smi sees."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def visible_cards() -> list[str]:
    """Returns CUDA's names of the GPUs that a process started here sees."""
    default = ",".join(str(i) for i in range(len(gpus())))
    return [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", default).split(",") if card] if default else []


def only_cards(count: int) -> dict[str, str]:
    """Returns the environment in which a process sees only the first `count` of them; empty if there are none."""
    cards = visible_cards()[:count]
    return {"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {}


def describe() -> dict[str, Any]:
    """Returns all of it for the JSON of a measurement; `load` says how busy the machine was before it began."""
    return {
        "processor": processor(),
        "gpus": gpus(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("jax", "jaxlib", "flax", "torch", "diffusers")},
        "commit": commit(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
    }


def tuned_for_torch() -> dict[str, str]:
    """Returns the environment in which PyTorch is fastest on a CPU: tcmalloc or else huge pages, and AVX-512 in MKL.

    MKL uses AVX-512 by itself on Intel's processors; on AMD's it takes slower paths, unless the function by which it
    asks whether the processor is Intel's says yes.
    """
    allocator = preloadable("libtcmalloc")  # if the system has it; it does not ask for huge pages
    libraries = [*allocator, *answer_for_mkl()]
    before = [path for path in [os.environ.get("LD_PRELOAD")] if path]
    pages = {} if allocator else huge_pages.wanted(os.environ)
    return pages | ({"LD_PRELOAD": ":".join([*libraries, *before])} if libraries else {})


def preloadable(name: str) -> list[str]:
    """Returns the path of a shared library in LD_LIBRARY_PATH or known to the system's linker, in a list; or []."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = [str(path) for folder in folders if folder for path in sorted(Path(folder).glob(f"{name}*.so*"))]
    try:
        lines = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    return [*found, *(line.split("=> ")[1] for line in lines if name in line and "=> " in line)][:1]


@functools.cache
def answer_for_mkl() -> list[str]:
    """Builds a library for AMD whose `mkl_serv_intel_cpu_true` says yes; returns [path], or [] if it cannot."""
    cpuinfo = Path("/proc/cpuinfo")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not cpuinfo.exists() or "AuthenticAMD" not in cpuinfo.read_text() or compiler is None:
        return []
    folder = tempfile.mkdtemp(prefix="dit-jax-mkl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "yes.so"
    source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
    words = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    done = subprocess.run(words, input=source, text=True, capture_output=True)
    return [str(library)] if done.returncode == 0 else []
