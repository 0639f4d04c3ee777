"""The cache of compiled programs: where it is, whose it is, and what a damaged entry does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dit_jax.system import compilation

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax._src import monitoring
from dit_jax.system import compilation
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation.use_cache()
f = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)
print(jax.config.jax_compilation_cache_dir)
print(np.asarray(f(jnp.arange(12.0).reshape(3, 4))).tobytes().hex())
print(events.count("/jax/compilation_cache/cache_hits") > 0)
"""


def run(home, **environ):
    """Runs `PROGRAM`; returns (cache folder, result, whether anything came from the cache, stderr)."""
    environ = {key: value for key, value in os.environ.items() if "CACHE" not in key} | {"HOME": str(home)} | environ
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder, result, hit = done.stdout.splitlines()
    return folder, result, hit == "True", done.stderr


DAMAGES = [lambda data: data[:100], lambda data: b"", lambda data: data[:-9] + b"\0" * 9]


@pytest.mark.medium
def test_a_warm_cache_gives_the_same_bits_and_a_damaged_one_too(tmp_path):
    folder, cold, hit, _ = run(tmp_path)
    assert not hit
    assert folder.startswith(str(tmp_path / ".cache" / "dit-jax" / "xla"))
    assert (tmp_path / ".cache" / "dit-jax").stat().st_mode & 0o777 == 0o700
    _, warm, hit, _ = run(tmp_path)
    assert hit
    assert warm == cold
    entries = {path: path.read_bytes() for path in Path(folder).glob("*-cache")}
    assert entries
    for damage in DAMAGES:
        for path, data in entries.items():
            path.write_bytes(damage(data))
        _, mended, _, told = run(tmp_path)
        assert mended == cold
        assert "Error reading persistent compilation cache entry" in told


def folder_with(monkeypatch, **environ):
    """Returns the cache folder that `use_cache` sets, or None, with these environment variables."""
    for key, value in environ.items():
        monkeypatch.setenv(key, str(value))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)  # was set for the tests
    try:
        compilation.use_cache()
        return jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").write_text("")
    assert folder_with(monkeypatch, HOME=tmp_path / "file") is None
    assert folder_with(monkeypatch, HOME=tmp_path).startswith(str(tmp_path / ".cache" / "dit-jax" / "xla"))
    (tmp_path / ".cache" / "dit-jax").chmod(0o770)  # others could put code there
    assert folder_with(monkeypatch) is None
    assert folder_with(monkeypatch, XDG_CACHE_HOME=tmp_path / "x").startswith(str(tmp_path / "x" / "dit-jax" / "xla"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))  # as JAX_COMPILATION_CACHE_DIR does
    try:
        compilation.use_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("named", "kept"), [("", False), ("/shared", True)])
def test_several_processes_keep_programs_in_a_folder_that_is_named_alone(named, kept, monkeypatch):
    before = jax.config.jax_enable_compilation_cache
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        compilation.use_shared_cache_alone()
        assert jax.config.jax_enable_compilation_cache == kept
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
