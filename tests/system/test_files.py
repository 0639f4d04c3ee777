"""Files are written atomically: the next writer removes what a kill left behind, but not what another still writes."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit_jax.system import files
from dit_jax.system.files import replacing

WRITER = """
import sys
from pathlib import Path
from dit_jax.system.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("theirs")
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Another process that is halfway through writing a file, and the file's path."""
    path, command = tmp_path / "grid[1].png", [sys.executable, "-c", WRITER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, str(path)], **pipes) as process:
        assert process.stdout.readline() == "half\n"
        yield process, path
        process.kill()


def write(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ours")


def names(path):
    return sorted(found.name for found in path.parent.iterdir())


def test_what_a_kill_left_is_removed_and_nothing_else(writer):
    process, path = writer
    process.send_signal(signal.SIGKILL)
    process.wait()
    here = f"{files.kernel()}01234567.tmp"
    others = [f"grid[1].png.bak.{here}", f"grid[1].png2.{here}", f"grid1.png.{here}", "mine.tmp"]
    others += ["grid[1].png.0123456789abcdef.tmp"]  # of another machine, whose locks are not seen here
    for name in others:
        path.with_name(name).touch()
    assert len(names(path)) == len(others) + 1
    write(path)
    assert names(path) == sorted([path.name, *others])


def test_two_files_at_once_and_one_in_the_other(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert names(tmp_path / "a") == ["a"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    """NumPy refuses an array of objects after it has begun the file."""
    write(tmp_path / "a")
    with pytest.raises(ValueError, match="allow_pickle"):
        files.write_npz(tmp_path / "a", {"objects": np.array([None])})
    assert (tmp_path / "a").read_text() == "ours"
    assert names(tmp_path / "a") == ["a"]


def test_what_another_process_is_writing_stays(writer):
    process, path = writer
    (half,) = path.parent.iterdir()
    write(path)
    assert half.read_text() == "theirs"
    process.communicate("")
    assert (process.returncode, path.read_text(), names(path)) == (0, "theirs", [path.name])


def test_a_folder_that_may_be_written_but_not_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(files.os, "open", refuse)
    with replacing(tmp_path / "a") as made:
        made.write_text("whole")
    assert names(tmp_path / "a") == ["a"]
