"""JAX's compiled programs, kept between processes: a run that starts again need not compile again."""

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax


def use_cache() -> None:
    """Points JAX at a folder of the user's own, unless one is set already (JAX_COMPILATION_CACHE_DIR).

    It holds machine code, so it must be the user's alone (mode 700), and each kind of processor has its own folder. An
    entry that is damaged is told by JAX and compiled again; without a folder all works as well, only later.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = private_folder(cache_home() / "dit-jax") / "xla" / processor()
    except (OSError, RuntimeError):  # no home, or one that may not be written
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def use_shared_cache_alone() -> None:
    """Keeps programs of several processes nowhere but in a folder that the user names (JAX_COMPILATION_CACHE_DIR).

    On GPUs processes share out the tuning of a program, and wait for each other's part: one that finds the program in a
    folder of its own, where JAX's first process alone writes, would leave the others waiting.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_enable_compilation_cache", False)


def cache_home() -> Path:
    """Where a user's caches are. Source: XDG base directory specification."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home) if Path(home).is_absolute() else Path.home() / ".cache"


def private_folder(folder: Path) -> Path:
    """Makes the folder; OSError if it is another user's or others may write there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def processor() -> str:
    """A name for the instructions of this machine's processor: code compiled for others may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
