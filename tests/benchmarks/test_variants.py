"""The variants of a step compute the same. Kernels for GPUs are interpreted here, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import commands, row_kernels, short_attention
from benchmarks.variants import PATCHES, biased_in_product, biased_with_sums, two_kernels
from dit_jax.models import attention, dit, layers
from dit_jax.training import loop

pytestmark = pytest.mark.long  # nothing but the GPU agenda depends on the variants


def apart(found, expected):
    """Returns the length of the difference, relative to that of `expected`."""
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_two_kernels_are_our_layer_norm(mean):
    x, weight = jax.random.normal(jax.random.key(0), (2, 40, 96)) + jnp.array([mean, 0.0])[:, None, None]
    np.testing.assert_allclose(two_kernels(x), layers._layer_norm(x), rtol=1e-4, atol=1e-5)
    found, expected = (jax.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (two_kernels, layers._layer_norm))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, [(0, 16)]),
        (17, [(0, 16), (16, 16)]),
        (64, [(0, 64)]),
        (65, [(0, 64), (64, 16)]),
        (100, [(0, 64), (64, 32), (96, 16)]),
        (128, [(0, 64), (64, 64)]),
    ],
)
def test_tiles_are_powers_of_two_that_cover_all_tokens(count, expected):
    assert short_attention.tiles(count) == expected


@pytest.mark.parametrize(("N", "K", "G", "E"), [(17, 2, 2, 12), (16, 1, 1, 16), (65, 1, 2, 8)])
def test_short_attention_and_its_gradient_are_those_of_jax(N, K, G, E):
    """In float32. Each head has its own place in the array, so a wrong head, tile or mask shows."""
    keys = jax.random.split(jax.random.key(N))
    x, weight = (
        jax.random.normal(key, (2, N, heads, E)) for key, heads in zip(keys, (K * G + 2 * K, K * G), strict=True)
    )
    ours = lambda x: short_attention.short_attention(x, K)  # noqa: E731
    theirs = lambda x: jax.nn.dot_product_attention(*jnp.split(x, [K * G, K * G + K], axis=2))  # noqa: E731
    found, expected = (jax.jit(jax.vjp(f, x)[1])(weight)[0] for f in (ours, theirs))
    assert apart(found, expected) < 1e-5
    assert apart(ours(x), theirs(x)) < 1e-5


def test_short_attention_of_large_scores_is_finite():
    """The scores reach 1,154 here, and exp(89) overflows float32."""
    x = 20 * jax.random.normal(jax.random.key(0), (1, 16, 3, 16))
    attend = lambda x: short_attention.short_attention(x, 1)  # noqa: E731
    assert jnp.isfinite(jax.jit(attend)(x)).all()
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: attend(x).sum()))(x)).all()


@pytest.fixture
def attend():
    """Returns run(cls, N, ...): self-attention of N tokens of width 32, four query and two key heads, by `cls`."""

    def run(cls, N, qk_norm=False, dtype=jnp.bfloat16):
        module = cls(num_heads=4, num_kv_heads=2, qk_norm=qk_norm, dtype=dtype)
        x = jax.random.normal(jax.random.key(0), (2, N, 32))
        params = attention.Attention(4, 2, qk_norm, dtype).init(jax.random.key(1), x)
        leaves, tree = jax.tree.flatten(params)  # biases start at 0, scales of norms at 1
        leaves = [p + 0.3 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
        params = jax.tree.unflatten(tree, leaves)
        return jax.jit(module.apply)(params, x)

    return run


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_in_one_kernel_has_our_parameters_and_output(qk_norm, attend):
    found, expected = (attend(cls, 17, qk_norm) for cls in (short_attention.Attention, attention.Attention))
    assert 0 < apart(found, expected) < 1e-2


def test_long_sequences_and_float32_have_our_attention(attend):
    for N, dtype in [(short_attention.LONGEST + 1, jnp.bfloat16), (16, jnp.float32)]:
        found, expected = (attend(cls, N, dtype=dtype) for cls in (short_attention.Attention, attention.Attention))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 5, 40), (2, 8, 64)])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_sum_and_its_norm_in_one_kernel_have_the_gradients_of_two(shape, terms):
    """Against our layer norm, which has a test of its own; the first token's deviation is 0."""
    arrays = 1 + 2 * jax.random.normal(jax.random.key(0), (terms + 2, *shape))
    *given, of_sum, of_norm = arrays.at[:, :, 0].set(1.0)

    def ours(*given):
        return row_kernels.add_and_norm(given[0], given[1] if given[1:] else None, jnp.float32)

    def theirs(*given):
        return sum(given), layers.layer_norm(sum(given))

    for one, other in zip(ours(*given), theirs(*given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    found, expected = (jax.jit(jax.vjp(f, *given)[1])((of_sum, of_norm)) for f in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_block_with_norms_in_one_kernel_has_our_parameters_and_output(adaptive):
    """In float32, with dropout, whose draws must be the same."""
    settings = dict(num_heads=2, num_kv_heads=1, qk_norm=False, mlp_ratio=2, dropout=0.3)
    ours, theirs = (cls(**settings, adaptive=adaptive, dtype=jnp.float32) for cls in (row_kernels.Block, dit.Block))
    x, skip = jax.random.normal(jax.random.key(0), (2, 3, 5, 16))
    inputs = x, jnp.ones((3, 16)), skip, jax.random.split(jax.random.key(1), 3)
    params = jax.tree.map(lambda p: p + 0.1, theirs.init(jax.random.key(2), *inputs))
    found, expected = (jax.jit(model.apply)(params, *inputs) for model in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("R", "F"), [(130, 256), (64, 128), (70, 40)])
def test_gelus_gradient_and_its_sums_are_those_of_jax(R, F):
    x, gradient = 2 * jax.random.normal(jax.random.key(0), (2, R, F))
    expected = jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), x)[1](gradient)[0]
    found, sums = jax.jit(row_kernels.gelu_backward)(x, gradient)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(sums, expected.sum(0), atol=1e-3)
    found, sums = jax.jit(row_kernels.gelu_backward)(x.astype(jnp.bfloat16), gradient.astype(jnp.bfloat16))
    np.testing.assert_allclose(sums, found.astype(jnp.float32).sum(0), atol=1e-4)  # what is rounded is what is summed


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("variant", [biased_in_product, biased_with_sums])
def test_a_bias_in_the_product_is_ours_within_rounding(variant, with_gelu):
    """For 512 rows in bfloat16, whose eight bits leave an error of up to 0.4% in each value."""
    rows, gradient = jax.random.normal(jax.random.key(0), (2, 512, 40)).astype(jnp.bfloat16)
    bias = jax.random.normal(jax.random.key(1), (40,))

    def run(f, dtype):
        out, back = jax.vjp(lambda rows, bias: f(rows, bias, dtype, with_gelu), rows.astype(dtype), bias)
        return out, *back(gradient.astype(out.dtype))

    traced = jax.make_jaxpr(lambda rows, bias: variant(rows, bias, jnp.bfloat16, with_gelu))(rows, bias)
    assert "erf" not in str(traced)  # it has a tanh, as cuBLASLt's GELU does
    for found, expected in zip(run(variant, jnp.bfloat16), run(layers.biased, jnp.float32), strict=True):
        assert apart(found.astype(jnp.float32), expected) < 5e-3
    for found, expected in zip(run(variant, jnp.float32), run(layers.biased, jnp.float32), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_undone(name):
    seen = lambda: (attention.has_cudnn_attention, dit.Attention, dit.Block, layers.biased, layers._layer_norm)  # noqa: E731
    before = seen()
    with PATCHES[name]():
        assert (seen() == before) == (name == "")
    assert seen() == before


ATTENTION = {"short_attention_forward_kernel", "short_attention_backward_kernel"}
NORMS, GELU = {"norm_kernel", "norm_gradient_kernel"}, {"gelu_kernel"}
USED = {"short_attention": ATTENTION, "row_norms": NORMS, "with_sums": GELU, "all": ATTENTION | NORMS | GELU}


@pytest.mark.parametrize("name", ["", *USED])
def test_a_step_has_the_kernels_of_its_variant(name):
    """The train call of a small model in bfloat16, lowered for CUDA, has its variant's kernels by name."""
    toy = ["model.depth=1", "model.width=64", "model.patch_size=8", "model.dtype=bfloat16", "train.batch_size=8"]
    made = commands.experiment("configs/cifar10.py:report", toy)
    images, labels = jax.ShapeDtypeStruct((64, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((64,), np.int32)
    inputs = made.abstract_state(), jax.eval_shape(loop.zero_sums), images, labels, jax.ShapeDtypeStruct((), np.int32)
    with PATCHES[name]():
        program = made.train_call().trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert {word for word in ATTENTION | NORMS | GELU if f'"{word}"' in program} == USED.get(name, set())


@pytest.mark.parametrize("N", [64, 65])
def test_kernels_are_lowered_for_cuda(N):
    """With the report's heads and those of `best`: what Triton cannot express, it refuses here."""
    for H, K, E in [(8, 2, 48), (6, 6, 64)]:
        x = jax.ShapeDtypeStruct((4, N, H + 2 * K, E), jnp.bfloat16)
        loss = lambda x, K=K: short_attention.short_attention(x, K).astype(jnp.float32).sum()  # noqa: E731
        lowered = jax.jit(jax.grad(loss)).trace(x).lower(lowering_platforms=("cuda",)).as_text()
        assert "xla.gpu.triton" in lowered
    rows, x = jax.ShapeDtypeStruct((4 * N, 1536), jnp.bfloat16), jax.ShapeDtypeStruct((4, N, 384), jnp.float32)
    norm = lambda *given: sum(jnp.sum(out) for out in row_kernels.add_and_norm(*given, jnp.bfloat16))  # noqa: E731
    for f, given in [(row_kernels.gelu_backward, (rows, rows)), (jax.grad(norm), (x, x))]:
        assert "xla.gpu.triton" in jax.jit(f).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
