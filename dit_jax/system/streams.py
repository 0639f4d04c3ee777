"""Keeps standard output and error usable when a shell or a reader has closed them, and shows the log there.

Imports only the standard library, because it runs before imports that take seconds.
"""

import logging
import os
import sys


def open_closed() -> None:
    """Opens closed streams (`2>&-`) on /dev/null; else the next file would get what libraries write to their number."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def show_log() -> None:
    """Shows our own log on standard error, but only the warnings of libraries."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dit_jax").setLevel(logging.INFO)
    for library in ("absl", "asyncio"):  # Orbax logs its options there, and errors that it also raises
        logging.getLogger(library).setLevel(logging.CRITICAL)


def tell(text: str, error: bool = False) -> None:
    """Prints a result that is saved to disk, or an `error`; ignores a closed pipe (`| head`) and a full disk."""
    try:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if error else 1)  # as Python flushes once more at exit
