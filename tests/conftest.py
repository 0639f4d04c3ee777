"""Runs every test on eight CPU devices, with rank promotion as an error.

The platform and the device count are set here, before any test module can touch JAX. `filterwarnings` in pyproject.toml
turns warnings raised in our own code into errors. GPUs are visible only with DIT_JAX_TEST_GPU=1, which is for
tests/gpu.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "" if os.environ.get("DIT_JAX_TEST_GPU") == "1" else "cpu"
# Tests compile a lot and compute little: without LLVM's expensive passes they take a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# Tests share what they compile, in a folder that belongs to this test run and its workers: nothing from earlier runs is
# used, and nothing goes to the user's home.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dit-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax

jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"] or None)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
