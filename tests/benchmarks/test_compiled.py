"""Compiling for GPUs that are not there: as far as possible without a CUDA plugin, completely with one."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled, hlo
from benchmarks.variants import PATCHES
from dit_jax.errors import UserError
from dit_jax.models import attention

PLUGIN = importlib.util.find_spec("jax_plugins.xla_cuda13") if importlib.util.find_spec("jax_plugins") else None


@pytest.mark.parametrize("shape", [(64, 2, 4, 48), (65, 2, 4, 48), (257, 2, 4, 48), (64, 6, 1, 64)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", PATCHES)
def test_every_attention_is_one_that_a_gpu_is_given(name, dtype, shape, monkeypatch):
    """Its gradient, at the report's and our token counts, is lowered for CUDA: what JAX refuses, it refuses here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention, "has_cudnn_attention", lambda: True)
    N, K, G, E = shape
    q, kv = jax.ShapeDtypeStruct((2, N, K, G, E), jnp.float32), jax.ShapeDtypeStruct((2, N, K, E), jnp.float32)

    def loss(*qkv):
        with PATCHES[name]():
            return attention.grouped_query_attention(*qkv, dtype).astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, kv, kv).lower(lowering_platforms=("cuda",))
    assert lowered.out_info[0].shape == q.shape
    assert ("cudnn$fmha" in lowered.as_text()) == (dtype == jnp.bfloat16 and name != "xla_attention")


@pytest.mark.skipif(bool(PLUGIN), reason="JAX's CUDA plugin is installed")
def test_without_the_plugin_one_line_says_what_to_install():
    with pytest.raises(UserError, match=r"cannot compile for H200 .*pip install -r requirements-gpu.txt"):
        compiled.devices_of("H200", 1)


def test_what_is_told_of_a_step_by_hand(monkeypatch):
    """An H200 moves 4.3e12 bytes a second: 43 GB take 10 ms; 15.4 TFLOP take 20 ms."""
    kernels = [
        hlo.Kernel("other", 43 * 10**9, 0, "", ""),
        hlo.Kernel("product", 10**9, int(15.4e12), "", ""),
        hlo.Kernel("product", 10**9, 0, "", ""),
    ]
    memory = type("Stats", (), dict(argument_size_in_bytes=5e9, output_size_in_bytes=3e9, alias_size_in_bytes=2e9))
    memory.temp_size_in_bytes = 4e9
    program = type("Program", (), dict(memory_analysis=lambda: memory))
    made = compiled.commands.experiment("configs/cifar10.py:report", ["train.batch_size=64", "model.dtype=bfloat16"])
    found = compiled.told(made, "train", program, kernels, "H200")
    assert found["kernels"] == {"other": 1, "product": 2}
    assert found["gigabytes"] == {"other": 43.0, "product": 2.0}
    assert found["memory_gigabytes"] == 10
    assert found["at_best_ms"] == pytest.approx(10 + 20 + 1e9 / 4.3e12 * 1e3)
    assert found["at_best_images_per_second"] == pytest.approx(64e3 / found["at_best_ms"])
    assert "45.00" in compiled.table(found)


@pytest.mark.skipif(not PLUGIN, reason="needs requirements-gpu.txt")
@pytest.mark.parametrize("task", ["train", "sample"])
def test_a_program_is_compiled_for_two_cards_that_are_not_here(task, tmp_path):
    words = [
        f"--task={task}",
        "--gpu=H100",
        "--devices=2",
        f"--out={tmp_path / 'c.json'}",
        f"--kernels={tmp_path / 'k.txt'}",
    ]
    words += ["--config.model.dtype=bfloat16", "--config.model.depth=1", "--config.train.batch_size=64"]
    words += ["--config.sample.sampler=ddim", "--config.sample.steps=3", "--config.sample.batch_size=64"]
    run = [sys.executable, "-m", "benchmarks.compiled", *words]
    print(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["teraflop"] == pytest.approx(found["teraflop_of_the_model"], rel=0.03)
    assert ("collective" in found["kernels"]) == (task == "train")  # only gradients are summed over devices
    assert len((tmp_path / "k.txt").read_text().splitlines()) == sum(found["kernels"].values())
