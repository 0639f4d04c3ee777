"""A GPU computes what a CPU computes. On a machine with a GPU, run: DIT_JAX_TEST_GPU=1 pytest -m gpu tests/gpu

With DIT_JAX_TEST_GPU=dry the same tests run on the CPU, where they hold as well (benchmarks/gpu.sh, DRY=1).
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from benchmarks import row_kernels, variants
from benchmarks.short_attention import short_attention
from dit_jax.models import attention, layers
from dit_jax.models.autoencoder import Autoencoder
from dit_jax.training import loop, sharding
from tests import tiny

MODE = os.environ.get("DIT_JAX_TEST_GPU", "")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not MODE, reason="DIT_JAX_TEST_GPU is not set")]
only_gpu = pytest.mark.skipif(MODE == "dry", reason="a rehearsal on a CPU")


def accelerator():
    return jax.devices("cpu" if MODE == "dry" else "gpu")[0]


def on(monkeypatch, device):
    """Makes meshes consist of this one device for the rest of the test."""
    make = partial(jax.make_mesh, (1,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=[device])
    monkeypatch.setattr(sharding, "make_mesh", make)


def losses(monkeypatch, device, calls=10, **more):
    """Returns the mean loss of each training call of two steps, and the parameters after the last."""
    tiny.install(monkeypatch)
    on(monkeypatch, device)
    with jax.default_device(device):
        call, state, images, labels = tiny.start(tiny.experiment(**more))
        found = []
        for _ in range(calls):
            state, sums, _ = call(state, loop.zero_sums(), images, labels, np.int32(2))
            found.append(float(sums["loss"] / sums["steps"]))
    return np.array(found), jax.device_get(state.params)


@pytest.mark.parametrize("conditioning", ["token", "adaln_zero"])
def test_one_device_trains_as_the_cpu_does(conditioning, monkeypatch):
    """Twenty steps with every product in full float32: only the order of sums differs."""
    with jax.default_matmul_precision("highest"):
        ours, params = losses(monkeypatch, accelerator(), model__conditioning=conditioning)
        cpu, of_cpu = losses(monkeypatch, jax.devices("cpu")[0], model__conditioning=conditioning)
    np.testing.assert_allclose(ours, cpu, rtol=1e-3)
    apart = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(of_cpu), strict=True)]
    assert max(apart) < 2e-2  # AdamW's first steps are as large as the learning rate, 0.01, whatever the gradient
    assert len(set(cpu.tolist())) == len(cpu)  # it does train


def test_bfloat16_learns_as_float32_does(monkeypatch):
    """With the same draws, the two loss curves stay close together, and fall."""
    wide = dict(model__width=32, optimizer__learning_rate=0.003, calls=15 if MODE == "dry" else 100)
    full, _ = losses(monkeypatch, accelerator(), **wide)
    half, _ = losses(monkeypatch, accelerator(), model__dtype="bfloat16", **wide)
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.05)
    assert half[-5:].mean() < half[:5].mean() - 0.01


def test_an_autoencoder_is_the_cpus(monkeypatch):
    """Its convolutions are XLA's on a GPU and matrix products on a CPU; both in full float32."""
    model = Autoencoder(3, 4, 4, 32, 1)
    x, eps = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(4, 32, 32, 3), (4, 8, 8, 4)]))
    params = jax.device_get(jax.jit(model.init)(jax.random.key(2), x, eps))
    inputs, found = jax.device_get((params, x, eps)), []
    for device in (accelerator(), jax.devices("cpu")[0]):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            found.append(jax.device_get(jax.jit(model.apply)(*inputs)))
    np.testing.assert_allclose(found[0].images, found[1].images, atol=1e-3)
    np.testing.assert_allclose(found[0].kl_B, found[1].kl_B, rtol=1e-3)


@pytest.mark.parametrize("name", variants.PATCHES)
def test_two_runs_are_equal_to_the_bit(name, monkeypatch):
    """The promise of exact restarts (docs/reliability.md) depends on this."""
    settings = dict(model__dtype="bfloat16", model__width=32, model__patch_size=1)  # 65 tokens, heads of 16
    with variants.PATCHES[name]():
        (_, first), (_, second) = (losses(monkeypatch, accelerator(), **settings) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_samples_are_the_cpus(monkeypatch):
    """Five guided DDIM steps from the same noise differ by at most two of 255 levels."""
    tiny.install(monkeypatch)
    images = []
    for device in (accelerator(), jax.devices("cpu")[0]):
        on(monkeypatch, device)
        made = tiny.experiment(sample__steps=5, sample__guidance=2.0, sample__sampler="ddim")
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            params = jax.tree.map(lambda p: p + 0.05, made.init_params())  # otherwise the output layer is 0
            images.append(np.asarray(made.sampler()(params, jax.random.key(3), [0, 1, 2, 0])))
    assert np.abs(images[0] - images[1]).max() < 2 * 2 / 255
    assert images[0].std() > 0.1


SHAPES = [(65, 2, 4, 48), (257, 2, 4, 48), (65, 2, 3, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["", "xla_attention"])
def test_every_attention_is_ours(name, shape):
    """Gradients in bfloat16, by cuDNN if the GPU has it and by XLA, against XLA's in float32: within rounding."""
    N, K, G, E = shape
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, N, K, G, E))
    k, v = (jax.random.normal(key, (2, N, K, E)) for key in keys[1:3])
    weight = jax.random.normal(keys[3], q.shape)

    def gradients(patch, dtype):
        loss = lambda *qkv: (attention.grouped_query_attention(*qkv, dtype) * weight).sum()  # noqa: E731
        with variants.PATCHES[patch]():
            lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v)
        return lowered.compile()(q, k, v), "fmha" in lowered.as_text()

    with jax.default_matmul_precision("highest"):
        expected, _ = gradients("xla_attention", jnp.float32)
    found, by_cudnn = gradients(name, jnp.bfloat16)
    assert by_cudnn == (name == "" and attention.has_cudnn_attention())
    for a, b in zip(found, expected, strict=True):
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-2


@pytest.mark.parametrize("shape", [(65, 8, 2, 48), (64, 6, 6, 64), (17, 2, 1, 16)])
def test_attention_in_one_kernel_is_ours(shape):
    """Output and gradient of our kernels in bfloat16 against XLA's in float32: within rounding."""
    N, H, K, E = shape
    x = jax.random.normal(jax.random.key(0), (2, N, H + 2 * K, E)).astype(jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(1), (2, N, H, E))

    def theirs(x):
        q, k, v = jnp.split(x.astype(jnp.float32), [H, H + K], axis=2)
        return attention.grouped_query_attention(q.reshape(2, N, K, H // K, E), k, v).reshape(weight.shape)

    def run(f):
        out, back = jax.vjp(f, x)
        return out, back(weight.astype(out.dtype))[0]

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(run, static_argnums=0)(theirs)
    for a, b in zip(jax.jit(run, static_argnums=0)(lambda x: short_attention(x, K)), expected, strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_sum_and_its_norm_in_one_kernel_are_ours(terms, dtype):
    """7 x 65 rows of 384 values, the term and the norm in `dtype`; with the gradients of a weighted sum of both."""
    x, term, of_sum, of_norm = jax.random.normal(jax.random.key(0), (4, 7, 65, 384))
    given = (x, term.astype(dtype))[:terms]

    def ours(*given):
        return row_kernels.add_and_norm(given[0], given[1] if given[1:] else None, dtype)

    def theirs(*given):
        whole = sum(one.astype(jnp.float32) for one in given)
        return whole, layers.layer_norm(whole).astype(dtype)

    def run(f):
        out, back = jax.vjp(f, *given)
        return out, back((of_sum, of_norm.astype(dtype)))

    found, expected = (jax.tree.leaves(jax.jit(run, static_argnums=0)(f)) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < (1e-5 if dtype == jnp.float32 else 5e-3)


def test_gelus_gradient_and_its_sums_in_one_kernel_are_ours():
    x, gradient = jax.random.normal(jax.random.key(0), (2, 1000, 200)).astype(jnp.bfloat16)
    expected = layers.gelu_gradient(*(a.astype(jnp.float32) for a in (x, gradient)))
    found, sums = jax.jit(row_kernels.gelu_backward)(x, gradient)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(sums, found.astype(jnp.float32).sum(0), atol=1e-2)


@only_gpu
def test_peak_memory_is_told():
    stats = accelerator().memory_stats()
    assert stats is not None
    assert stats["peak_bytes_in_use"] > 0
