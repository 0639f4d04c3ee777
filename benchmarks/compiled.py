"""Compiles training or sampling for an absent NVIDIA GPU and reports its kernels, traffic and memory. Nothing runs.

    pip install -r requirements-gpu.txt
    python -m benchmarks.compiled --config.model.dtype=bfloat16 --config.train.batch_size=512
    python -m benchmarks.compiled --config=configs/cifar10.py:best --gpu=H100 --devices=8 --out=compiled.json
    python -m benchmarks.compiled --task=sample --config.sample.sampler=ddim --config.sample.batch_size=1000

XLA compiles for a GPU from a description of it. Where XLA would choose by trials on the card (which library or tiling
computes a product), it takes its default here. Bytes are those of each kernel's operands and results, FLOPs those of
its products. `at best` is the time of a train step, or of a pass of samples, if the kernels run one after the other and
each takes as long as memory or the matrix units need for it; links between devices take no time. The data are 50,000
images on each device.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import commands, flops, hlo, sample
from benchmarks.contestant import NUM_IMAGES
from benchmarks.variants import PATCHES
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment
from dit_jax.models import attention
from dit_jax.system.environment import commit
from dit_jax.system.files import replacing
from dit_jax.training import loop, sharding

GPUS = {  # memory bandwidth by the data sheet, and as reached by a copy, bytes/s; memory, bytes
    "H100": (3_352_320_000_000, 3.0e12, 84_942_979_072),
    "H200": (4_800_000_000_000, 4.3e12, 151_397_597_184),
}
MATRIX_FLOPS = {"bfloat16": 770e12, "float32": 385e12}  # of both; bfloat16 as measured on random data; TF32 is half
LIMITS = {  # of both an H100 and an H200, as fields of XLA's GpuTargetConfigProto
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_block_optin": 232448,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "device_address_bits": 64,
}


def target(gpu: str) -> str:
    """Returns XLA's description of a card."""
    bandwidth, _, memory = GPUS[gpu]
    limits = LIMITS | {"memory_bandwidth": bandwidth, "device_memory_size": memory}
    fields = [f"{name}: {value}" for name, value in limits.items()]
    fields += ["cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }"]
    fields += [f'{name}_version: "13.0.0"' for name in ("driver", "runtime", "compile_time_toolkit")]
    fields += [f'name: "NVIDIA {gpu}"', 'dnn_version: "9.10.0"', 'device_vendor: "NVIDIA Corporation"']
    about = f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "NVIDIA {gpu}"'
    return f"gpu_device_info {{ {' '.join(fields)} }} {about}"


def devices_of(gpu: str, count: int) -> list[Any]:
    """Returns `count` GPUs of one machine to compile for. Raises UserError without JAX's CUDA plugin."""
    if count < 1:
        raise UserError(f"--devices={count}: use a number above 0")
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for a driver
    # Without trials; and with cuBLAS's products, which those on a card chose (docs/performance.md).
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    try:
        jax.devices()  # the first call finds the plugins
        found = topologies.get_topology_desc("", "cuda", target_config=target(gpu), topology=f"1x1x{count}")
    except Exception as error:
        line = str(error).splitlines()[0]
        raise UserError(f"cannot compile for {gpu} ({line}); pip install -r requirements-gpu.txt") from None
    return list(found.devices)


def lower_sampling(made: Experiment, abstract: Callable[..., Any]) -> Any:
    """Lowers the sampler for two passes: XLA makes no loop of a single one, and `longest_loop` must find a pass."""
    params = jax.tree.map(lambda x: abstract(x.shape, x.dtype), jax.eval_shape(made.init_params))
    key, draw = abstract((), jax.random.key(0).dtype), made.sampler()
    labels = abstract((2 * made.config.sample.batch_size,), np.int32)
    return jax.jit(lambda params, key, labels: draw(params, key, labels)).lower(params, key, labels)


def lower_training(made: Experiment, abstract: Callable[..., Any]) -> Any:
    """Lowers the train call for data that is on the devices."""
    sums = jax.tree.map(lambda x: abstract(x.shape, x.dtype), jax.eval_shape(loop.zero_sums))
    images = abstract((NUM_IMAGES, *made.info.image_shape), np.uint8)
    if made.config.model.latents:
        images = abstract((NUM_IMAGES, *(2,) * made.config.data.flip, *made.x_shape), np.float32)
    labels, count = abstract((NUM_IMAGES,), np.int32), abstract((), np.int32)
    return made.train_call().lower(made.abstract_state(), sums, images, labels, count)


def compile_for(made: Experiment, task: str, patch: str) -> Any:
    """Compiles the program of a task for the devices of the experiment's mesh, which have cuDNN's attention."""
    whole = sharding.replicated(made.mesh)
    abstract = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)  # noqa: E731
    with mock.patch.object(attention, "has_cudnn_attention", return_value=True), PATCHES[patch]():
        return {"train": lower_training, "sample": lower_sampling}[task](made, abstract).compile()


def told(made: Experiment, task: str, compiled: Any, found: Sequence[hlo.Kernel], gpu: str) -> dict[str, Any]:
    """Returns the figures of a train step, or of a pass of samples, per device; images/s are those of all devices."""
    flops_per_image = sample.count(made) if task == "sample" else flops.training(made.model, made.x_shape)
    memory, batch = compiled.memory_analysis(), made.config[task].batch_size
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    rate = MATRIX_FLOPS[made.config.model.dtype]
    seconds = sum(kernel.seconds(GPUS[gpu][1], rate) for kernel in found)
    moved = Counter[str]()
    for kernel in found:
        moved[kernel.kind] += kernel.bytes
    return {
        "kernels": dict(Counter(kernel.kind for kernel in found)),
        "gigabytes": {kind: number / 1e9 for kind, number in moved.most_common()},
        "teraflop": sum(kernel.flops for kernel in found) / 1e12,
        "teraflop_of_the_model": batch / made.mesh.size * flops_per_image / 1e12,
        "memory_gigabytes": (held + memory.temp_size_in_bytes) / 1e9,
        "at_best_ms": seconds * 1e3,
        "at_best_images_per_second": batch / seconds,
    }


def table(result: dict[str, Any]) -> str:
    """Returns these figures as a table to read."""
    kernels, moved = result["kernels"], result["gigabytes"]
    rows = [f"{'':12}{'kernels':>8}{'GB':>9}"]
    rows += [f"{kind:12}{kernels[kind]:>8}{moved[kind]:>9.2f}" for kind in moved]
    rows += [f"{'all':12}{sum(kernels.values()):>8}{sum(moved.values()):>9.2f}", ""]
    rows += [
        f"products: {result['teraflop']:.2f} TFLOP; flops.py counts {result['teraflop_of_the_model']:.2f} for the model"
    ]
    rows += [f"memory: {result['memory_gigabytes']:.1f} GB with the data"]
    rows += [f"at best: {result['at_best_ms']:,.1f} ms, {result['at_best_images_per_second']:,.0f} images/s"]
    return "\n".join(rows)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Compiles, prints, and returns what `--out` stores."""
    style = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=style)
    made.add_argument("--config", default="configs/cifar10.py:report", help="the experiment, given as to main.py")
    made.add_argument("--task", choices=("train", "sample"), default="train")
    made.add_argument("--gpu", choices=GPUS, default="H200")
    made.add_argument("--devices", type=int, default=1, help="number of these GPUs, on one machine")
    made.add_argument("--patch", choices=PATCHES, default="", help="name of a patch in benchmarks/variants.py")
    made.add_argument("--kernels", type=Path, help="text file to write, one line per kernel")
    made.add_argument("--out", type=Path, help="JSON file to write")
    flags, assignments = commands.split(made, argv)
    experiment = commands.experiment(flags.config, assignments)
    mesh = Mesh(np.asarray(devices_of(flags.gpu, flags.devices)), (sharding.AXIS,), axis_types=(AxisType.Auto,))
    experiment.__dict__["mesh"] = mesh  # instead of the devices that are here
    experiment.check_devices()
    compiled = compile_for(experiment, flags.task, flags.patch)
    found = hlo.longest_loop(hlo.read(compiled.as_text()))
    about = {
        "task": flags.task,
        "config": flags.config,
        "assignments": assignments,
        "patch": flags.patch,
        "commit": commit(),
    }
    about |= {"gpu": flags.gpu, "devices": flags.devices, "jax": jax.__version__}
    result = about | told(experiment, flags.task, compiled, found, flags.gpu)
    unit = {"train": "a step", "sample": "a pass"}[flags.task]
    print(f"{unit} of {flags.config} on one of {flags.devices} x {flags.gpu}: compiled, not run\n\n{table(result)}")
    if flags.kernels:
        lines = [
            f"{one.bytes / 1e6:9.1f} MB {one.flops / 1e9:7.1f} GFLOP {one.kind:10} {one.source}\n" for one in found
        ]
        with replacing(flags.kernels) as temporary:
            temporary.write_text("".join(lines))
    if flags.out:
        commands.write(result, flags.out)
    return result


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
