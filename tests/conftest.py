"""Every test runs on eight CPU devices, and rank promotion is an error.

The platform and the device count are set here, before any test module can touch JAX. Errors for warnings
raised in our own code come from `filterwarnings` in pyproject.toml. Only with
DIT_JAX_TEST_GPU=1, which is for tests/gpu, is a GPU left to be seen.
"""

import os

os.environ["JAX_PLATFORMS"] = "" if os.environ.get("DIT_JAX_TEST_GPU") == "1" else "cpu"
# Tests compile much and compute little: without LLVM's expensive passes they take a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nothing from before a test, nor in the user's home

import jax

jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"] or None)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
