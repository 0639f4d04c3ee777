"""Huge pages (2 MiB) for arrays on a CPU: with pages of 4 KiB, a large batch waits for the kernel to allocate them.

Imports only the standard library, because it runs before imports that take seconds.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"  # malloc asks for huge pages (glibc 2.35 and later; others ignore it)
STARTED = "DIT_JAX_STARTED_ANEW"  # PID that has restarted: prevents an endless loop if VARIABLE is stripped
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_them() -> None:
    """Restarts this program, in the same process, with malloc asking for huge pages, if that changes anything.

    glibc reads its settings only when a program starts. The user's own settings are kept.
    """
    setting = wanted(os.environ)
    if setting and can_start_anew():
        os.environ |= setting | {STARTED: str(os.getpid())}
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # continues without huge pages
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def can_start_anew() -> bool:
    """Whether this program can restart: not if another program hosts it, it came from stdin, or it already has."""
    program = sys.argv[0] not in ("", "-") and sys.orig_argv[-len(sys.argv) :] == sys.argv
    return program and bool(sys.executable) and os.environ.get(STARTED) != str(os.getpid())


def wanted(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns what to add to `environ`: nothing if Linux gives huge pages always or never, or malloc is configured."""
    before = environ.get(VARIABLE, "")
    if "glibc.malloc" in before or not on_request():
        return {}
    return {VARIABLE: ":".join([*([before] if before else []), SETTING])}


def on_request() -> bool:
    """Whether Linux on this machine gives huge pages only on request (madvise)."""
    try:
        return "[madvise]" in MODE.read_text()
    except OSError:
        return False
