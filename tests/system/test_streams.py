"""Standard streams that a shell has closed, and readers that leave before the end."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = f"""
import os, runpy, sys
streams = runpy.run_path({str(Path("dit_jax/system/streams.py").absolute())!r})
streams["open_closed"]()
file = open(sys.argv[1], "w+")
print("to the reader", flush=True)
print("a word", file=sys.stderr, flush=True)
os.write(2, b"what a library tells")
file.seek(0)
sys.exit(7 if file.read() == "" and file.fileno() > 2 else 1)
"""


@pytest.mark.parametrize("closed", ["", "2>&-", ">&-", "2>&- >&-", "<&- 2>&- >&-"])
def test_a_file_never_takes_the_place_of_what_is_closed(closed, tmp_path):
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, CODE, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "to the reader\n")
    assert done.stderr == ("" if "2>&-" in closed else "a word\nwhat a library tells")


@pytest.mark.parametrize("reader", ["| true", "> /dev/full", "| head -1"])
def test_a_reader_that_has_gone_is_no_failure(reader):
    tell = f"import runpy; runpy.run_path({str(Path('dit_jax/system/streams.py').absolute())!r})['tell']"
    code = f"import time; time.sleep(0.3); {tell}('a table\\n' * 20000); {tell}('and more')"
    script = f'("$0" -c "$1"; echo "$?" >&2) {reader}'
    done = subprocess.run(["sh", "-c", script, sys.executable, code], capture_output=True, text=True)
    assert done.stderr == "0\n"
    assert done.stdout == ("a table\n" if "head" in reader else "")
