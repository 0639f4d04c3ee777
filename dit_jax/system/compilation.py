"""Keeps JAX's compiled programs between processes, so that a restarted run need not compile again."""

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax


def use_cache() -> None:
    """Points JAX's cache at a private folder of the user, unless one is set already (JAX_COMPILATION_CACHE_DIR).

    It holds machine code, so only the user may write there (mode 700), and each kind of processor has its own folder.
    JAX reports a damaged entry and compiles again. Without a folder everything works, but starts more slowly.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = private_folder(cache_home() / "dit-jax") / "xla" / processor()
    except (OSError, RuntimeError):  # no home folder, or not a writable one
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def use_shared_cache_alone() -> None:
    """Turns the cache off for several processes unless the user names its folder (JAX_COMPILATION_CACHE_DIR).

    On GPUs, processes divide the tuning of a program and wait for each other's part. JAX's first process alone writes
    the cache: if the folder is not shared, a process that finds the program in its own would leave the others waiting.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_enable_compilation_cache", False)


def cache_home() -> Path:
    """Returns the folder of the user's caches. Source: XDG base directory specification."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home) if Path(home).is_absolute() else Path.home() / ".cache"


def private_folder(folder: Path) -> Path:
    """Creates and returns a folder; OSError if it is another user's, others may write there, or this user may not."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def processor() -> str:
    """Returns a name for this processor's instruction set: code compiled for another may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
