"""Memory in pages of 2 MiB for the arrays of a CPU: with 4 KiB a large batch waits for the kernel to hand them out.

Only the standard library is imported here, for this comes before imports that take seconds.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"  # malloc asks for huge pages (glibc 2.35 and later; others pass over it)
STARTED = "DIT_JAX_STARTED_ANEW"  # the process that has been: where VARIABLE is taken away, it would have no end
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_them() -> None:
    """Starts this program anew, in the same process, with malloc asking for huge pages, where that changes anything.

    glibc reads its settings when a process begins and never again. A setting of the user's own stays as it is.
    """
    setting = wanted(os.environ)
    if setting and can_start_anew():
        os.environ |= setting | {STARTED: str(os.getpid())}
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # then it goes on without
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def can_start_anew() -> bool:
    """Whether Python's own command line says how: not if the program is another's guest or came from stdin."""
    program = sys.argv[0] not in ("", "-") and sys.orig_argv[-len(sys.argv) :] == sys.argv
    return program and bool(sys.executable) and os.environ.get(STARTED) != str(os.getpid())


def wanted(environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment: nothing if Linux gives huge pages unasked or never, or malloc is told already."""
    before = environ.get(VARIABLE, "")
    if "glibc.malloc" in before or not on_request():
        return {}
    return {VARIABLE: ":".join([*([before] if before else []), SETTING])}


def on_request() -> bool:
    """Whether this machine's Linux gives huge pages to who asks, and to nobody else."""
    try:
        return "[madvise]" in MODE.read_text()
    except OSError:
        return False
