from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import core as jaxpr_core

from dit_jax.models import attention
from dit_jax.models.attention import Attention, grouped_query_attention


def draw(B=2, N=5, M=7, K=2, G=3, E=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, N, K, G, E), (B, M, K, E), (B, M, K, E)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def textbook(q, k, v):
    """Softmax(q k^T / sqrt(E)) v of Vaswani et al. 2017, equation 1, head by head: [B, N, H, E] -> [B, N, H, E]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h]
    return out


@pytest.mark.parametrize(("K", "G"), [(2, 3), (1, 4), (4, 1)], ids=["grouped", "multi-query", "multi-head"])
def test_equals_dot_product_attention_of_jax(K, G):
    q, k, v = draw(K=K, G=G)
    B, N, _, _, E = q.shape
    expected = jax.nn.dot_product_attention(q.reshape(B, N, K * G, E), k, v)  # head h = k * G + g
    np.testing.assert_allclose(grouped_query_attention(q, k, v).reshape(B, N, K * G, E), expected, atol=2e-6)


def test_one_query_head_a_key_head_is_textbook_multi_head_attention():
    q, k, v = draw(K=3, G=1)
    np.testing.assert_allclose(grouped_query_attention(q, k, v)[:, :, :, 0], textbook(q[:, :, :, 0], k, v), atol=2e-6)


def test_one_key_head_is_shared_by_all_query_heads():
    q, k, v = draw(K=1, G=4)
    repeated = textbook(q[:, :, 0], np.repeat(k, 4, axis=2), np.repeat(v, 4, axis=2))
    np.testing.assert_allclose(grouped_query_attention(q, k, v)[:, :, 0], repeated, atol=2e-6)


@pytest.mark.medium
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("gpu", [False, True])
def test_gradients_are_those_that_jax_derives_of_its_own_attention(dtype, error, gpu, monkeypatch):
    """Against JAX's in float32, also in the form for GPUs; errors are relative to each gradient's norm."""
    if gpu:
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *inputs, cpu, default: default(*inputs))
    q, k, v = draw(N=9, M=11, E=8)
    B, N, K, G, E = q.shape
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, N, K * G, E)), jnp.float32)
    ours = lambda q, k, v: grouped_query_attention(q, k, v, dtype).reshape(B, N, K * G, E)  # noqa: E731
    theirs = lambda q, k, v: jax.nn.dot_product_attention(q.reshape(B, N, K * G, E), k, v)  # noqa: E731
    found, expected = (jax.grad(lambda *qkv, f=f: (weight * f(*qkv)).sum(), (0, 1, 2))(q, k, v) for f in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert jnp.linalg.norm(one - other) < error * jnp.linalg.norm(other)


def test_large_scores_stay_finite():
    q, k, v = draw()
    assert np.isfinite(grouped_query_attention(100 * q, 100 * k, v)).all()


@pytest.mark.parametrize(
    ("platform", "version", "capability", "expected"),
    [
        ("gpu", "PJRT C API\ncuda 13000", "9.0", True),
        ("gpu", "cuda 12090", "8.0", True),
        ("gpu", "cuda 13000", "10.0", True),
        ("gpu", "cuda 13000", "7.5", False),
        ("gpu", "PJRT C API\nrocm 70002", "gfx90a", False),
        ("cpu", "cpu", None, False),
    ],
    ids=["H100", "A100", "B200", "T4", "ROCm", "CPU"],
)
def test_cudnn_attention_needs_an_nvidia_gpu_from_ampere_on(platform, version, capability, expected, monkeypatch):
    device = SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention.has_cudnn_attention() is expected


def test_this_cpu_has_no_cudnn_attention():
    assert attention.has_cudnn_attention() is False


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("width", "fits"), [(8, True), (48, True), (128, True), (4, False), (12, False), (68, False), (136, False)]
)
def test_only_bfloat16_heads_of_some_widths_use_cudnn(width, fits, dtype, has, monkeypatch):
    """Only widths that are multiples of 8, up to 128; queries, keys and values may have any dtype."""
    monkeypatch.setattr(attention, "has_cudnn_attention", lambda: has)
    monkeypatch.setattr(attention, "cudnn_attention", lambda *qkv: "cuDNN")
    used = []
    jax.eval_shape(lambda *qkv: used.append(grouped_query_attention(*qkv, dtype)), *draw(E=width))
    assert isinstance(used[0], str) == (has and fits and dtype == jnp.bfloat16)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_where_jax_refuses_cudnn_ours_is_used(error, monkeypatch):
    """As with a cuDNN that is missing or older than the GPU."""

    def refuse(*_):
        raise error("cuDNN is not detected.")

    q, k, v = draw(E=8)
    expected = grouped_query_attention(q, k, v, jnp.bfloat16)
    monkeypatch.setattr(attention, "has_cudnn_attention", lambda: True)
    monkeypatch.setattr(attention, "cudnn_attention", refuse)
    np.testing.assert_array_equal(grouped_query_attention(q, k, v, jnp.bfloat16), expected)


@pytest.mark.parametrize("default", ["cpu", jax.devices("cpu")[0]])
def test_a_default_device_that_is_no_gpu_has_none(default, monkeypatch):
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    gpu = SimpleNamespace(platform="gpu", client=client, compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert attention.has_cudnn_attention()
    with jax.default_device(default):
        assert not attention.has_cudnn_attention()


@pytest.mark.parametrize("N", [4, 5])
def test_cudnn_is_given_an_even_number_of_tokens_and_told_which_are_ours(N, monkeypatch):
    """JAX's own attention on the CPU stands in for cuDNN: an added sixth token has no effect and is not returned."""
    given, real = [], jax.nn.dot_product_attention

    def standing(q, k, v, *, implementation, **more):
        given.append((q.shape[1], q.dtype, k.dtype, v.dtype, implementation))
        return real(q, k, v, **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", standing)
    q, k, v = draw(N=N, M=N, E=8)
    found = attention.cudnn_attention(q, k, v)
    assert given == [(N + N % 2, *[jnp.bfloat16] * 3, "cudnn")]
    assert (found.shape, found.dtype) == (q.shape, jnp.bfloat16)
    expected = grouped_query_attention(q, k, v)
    assert jnp.linalg.norm(found - expected) < 0.02 * jnp.linalg.norm(expected)


WIDTH, HEADS, KV_HEADS, HEAD_WIDTH = 48, 8, 2, 6  # eight query heads on two key/value heads, as in the report


# First column of `qkv` to change, in heads, and the query heads whose output must move.
@pytest.mark.parametrize(
    ("column", "moved"),
    [(5, {5}), (2, {2}), (HEADS + 1, {4, 5, 6, 7}), (HEADS + KV_HEADS, {0, 1, 2, 3})],
    ids=["query 5", "query 2", "key 1", "value 0"],
)
def test_query_head_h_uses_key_value_head_h_over_g(column, moved):
    x = jax.random.normal(jax.random.key(1), (1, 3, WIDTH))
    attention = Attention(HEADS, KV_HEADS, False, jnp.float32)
    kernel = jax.random.normal(jax.random.key(0), (WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_WIDTH)) / WIDTH**0.5
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)
    apply = jax.jit(attention.apply)

    def heads(kernel):
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)["params"]
        params["qkv"]["kernel"] = kernel
        params["out"]["kernel"] = jnp.eye(WIDTH)  # shows the heads side by side
        return np.asarray(apply({"params": params}, x)).reshape(3, HEADS, HEAD_WIDTH)

    columns = slice(column * HEAD_WIDTH, (column + 1) * HEAD_WIDTH)
    change = np.abs(heads(kernel.at[:, columns].multiply(-2)) - heads(kernel)).max(axis=(0, 2))
    assert {h for h in range(HEADS) if change[h] > 1e-4} == moved


def every_variable(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jaxpr_core.jaxprs_in_params(equation.params):
            yield from every_variable(inner)


def test_keys_and_values_are_never_repeated_in_memory():
    """Repeated keys would have B M H E = 2 * 7 * 6 * 4 = 336 values; no other array has that size."""
    q, k, v = draw()

    def loss(q, k, v):
        return grouped_query_attention(q, k, v).sum()

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
    sizes = {variable.aval.size for variable in every_variable(jaxpr.jaxpr)}
    assert 2 * 6 * 5 * 7 in sizes  # the scores: the walk does visit inner jaxprs
    assert 2 * 7 * 6 * 4 not in sizes


def test_the_walk_would_see_repeated_keys():
    q, k, v = draw()
    repeat = lambda q, k, v: grouped_query_attention(  # noqa: E731
        q.reshape(2, 5, 6, 1, 4), jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2)
    )
    sizes = {variable.aval.size for variable in every_variable(jax.make_jaxpr(repeat)(q, k, v).jaxpr)}
    assert 2 * 7 * 6 * 4 in sizes
