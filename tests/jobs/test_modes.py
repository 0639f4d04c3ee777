"""What all modes have in common: what a seed draws depends on the config alone."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from dit_jax.jobs import modes
from dit_jax.system import together
from tests import tiny


def drawn():
    """Returns what training and sampling draw, as a NumPy array, in whose dtype 64-bit numbers would show."""
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(3), 17), (5,)))


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no driver")])
def test_devices_that_are_not_there_are_one_line_in_every_mode(error, tmp_path, capfd, monkeypatch):
    def none():
        raise error

    tiny.install(monkeypatch)
    monkeypatch.setattr(jax, "device_count", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for mode in modes.MODES:
        done = tiny.run_main(capfd, *tiny.flags(), "--workdir", tmp_path, f"--mode={mode}")
        assert done.code == 2
        (line,) = done.err
        assert re.fullmatch(
            r"error: JAX found no device \(.+\); fix that, or check the environment: JAX_PLATFORMS=cuda", line
        )
    for name in together.WISHES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(type(error)):
        together.device_count()


@pytest.mark.medium
def test_no_start_waits_for_matplotlib():
    code = "import sys, dit_jax.jobs.modes; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


OTHERS = {
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 1,
}


@pytest.mark.parametrize("name", OTHERS)
def test_jaxs_environment_does_not_change_what_a_seed_draws(name, caplog):
    expected, before = drawn(), getattr(jax.config, name)
    assert before == modes.NUMBERS[name]
    modes.fix_numbers()
    assert not caplog.records
    try:
        jax.config.update(name, OTHERS[name])
        other = drawn()
        modes.fix_numbers()
        found = drawn()
    finally:
        jax.config.update(name, before)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert name == "jax_threefry_partitionable" or other.dtype != expected.dtype or (other != expected).any()
    assert f"{name.upper()} is overridden with {before}" in caplog.text
