"""The lock of a workdir: it has one holder, whom a refusal names, and it ends with the holder's process."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from dit_jax.errors import UserError
from dit_jax.system.lock import only_trainer

HOLDER = """
import sys, time, pathlib
from dit_jax.system.lock import only_trainer
with only_trainer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_a_kill_frees_it(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = f"training run is using it .process {holder.pid} on {socket.gethostname()}.; stop that run, or use"
        for _ in range(2):  # the first refusal must not have removed the lock
            with pytest.raises(UserError, match=told), only_trainer(tmp_path):
                pass
        holder.send_signal(signal.SIGKILL)
    with only_trainer(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/.lock'"), only_trainer(tmp_path):
        pass


def test_it_is_freed_by_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), only_trainer(tmp_path):
        raise ZeroDivisionError
    with only_trainer(tmp_path):
        pass


def test_a_file_that_its_holder_took_away_is_no_lock(tmp_path, monkeypatch):
    """If it was opened while another process held it and locked after that one ended, a third may have a new file."""
    lock, taken = fcntl.flock, []

    def flock(file, how):
        if not taken:
            taken.append((tmp_path / ".lock").unlink())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_trainer(tmp_path):
        monkeypatch.undo()
        with pytest.raises(UserError), only_trainer(tmp_path):
            pass


def test_the_file_is_removed_before_the_lock_is_released(tmp_path, monkeypatch):
    """Otherwise a second trainer could lock it in between, and a third could create and lock a new one."""
    real, seen = os.close, []

    def close(file):
        seen.append((tmp_path / ".lock").exists())
        real(file)

    with only_trainer(tmp_path):
        monkeypatch.setattr(os, "close", close)
    monkeypatch.undo()
    assert seen == [False]


def test_a_file_system_without_locks_is_told_and_goes_on(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_trainer(tmp_path):
        pass
    assert "cannot be locked (No locks available): do not start a second" in caplog.text
