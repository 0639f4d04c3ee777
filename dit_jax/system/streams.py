"""Standard output and error where a shell or a reader has closed them.

Only the standard library is imported here, for this comes before imports that take seconds.
"""

import os
import sys


def open_closed() -> None:
    """Opens to nothing what was closed (`2>&-`): the next file would get its number, and what libraries write to it."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def tell(text: str) -> None:
    """Prints what is on the disk already: a reader that has gone (`| head`) or a full disk costs nothing."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
