"""Properties of the whole network, at initialisation and for any parameters."""

from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import core as jaxpr_core
from jax._src.ad_checkpoint import saved_residuals

from dit_jax.models import dit
from dit_jax.models.dit import Block
from dit_jax.models.embeddings import patchify
from dit_jax.models.layers import layer_norm


def every_equation(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxpr_core.jaxprs_in_params(equation.params):
            yield from every_equation(inner)


@pytest.fixture
def net(make_tiny, make_inputs, randomised, conditioning):
    """Returns (jitted apply(x, t, labels), inputs) of a tiny network whose parameters are all nonzero."""
    model, inputs = make_tiny(conditioning=conditioning, depth=1), make_inputs()
    params = randomised(model, inputs)
    return jax.jit(lambda x, t, labels: model.apply(params, x, t, labels)), inputs


def test_output_is_zero_at_initialisation(make_tiny, make_inputs, conditioning):
    model, inputs = make_tiny(conditioning=conditioning, depth=1), make_inputs()
    params = jax.jit(model.init)(jax.random.key(0), *inputs)

    def loss(params):
        out = model.apply(params, *inputs)
        return jnp.square(out - 1).mean(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert out.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(out, 0)
    assert np.abs(gradients["params"]["final"]["kernel"]).max() > 1e-3
    assert np.abs(gradients["params"]["final"]["bias"]).max() > 1e-3


def test_initialisation_is_that_of_the_dit_code(make_tiny, make_inputs):
    """`initialize_weights`: matrices xavier uniform, time MLP and class table N(0, 0.02^2), adaLN and output zero."""
    model = make_tiny(conditioning="adaln_zero", width=128, num_heads=4, num_classes=1000, depth=1)
    params = jax.jit(model.init)(jax.random.key(0), *make_inputs())["params"]

    def std(path):
        leaf = params
        for name in path.split("/"):
            leaf = leaf[name]
        return float(np.std(leaf))

    for path, rows, columns in [("patch/kernel", 12, 128), ("block_0/attention/out/kernel", 128, 128)]:
        assert std(path) == pytest.approx(sqrt(2 / (rows + columns)), rel=0.05)
    for path in ("time/Dense_0/kernel", "time/Dense_1/kernel", "label/Embed_0/embedding"):
        assert std(path) == pytest.approx(0.02, rel=0.05)
    for path in ("block_0/adaln/Dense_0/kernel", "final_adaln/Dense_0/kernel", "final/kernel"):
        assert std(path) == 0
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert len(biases) == 1 + 2 + 5 + 2  # patch; time; block: qkv, out, two of the MLP, adaln; final_adaln, final
    assert not any(np.asarray(bias).any() for bias in biases)


def test_adaln_zero_block_is_the_identity_at_initialisation():
    x, condition = jax.random.normal(jax.random.key(1), (2, 5, 32)), jax.random.normal(jax.random.key(2), (2, 32))
    block = Block(4, 2, qk_norm=False, mlp_ratio=4, dropout=0.0, adaptive=True, dtype=jnp.float32)
    out, params = jax.jit(block.init_with_output)(jax.random.key(0), x, condition)
    np.testing.assert_array_equal(out, x)
    params["params"]["adaln"]["Dense_0"]["bias"] += 0.1
    assert np.abs(jax.jit(block.apply)(params, x, condition) - x).max() > 1e-2


def test_every_parameter_has_a_gradient(make_tiny, make_inputs, randomised, conditioning):
    model, inputs = make_tiny(conditioning=conditioning, depth=1), make_inputs(n=5)
    gradients = jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, *inputs)).sum()))(randomised(model, inputs))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        dead = np.all(np.asarray(leaf) == 0, axis=-1)
        rows_unused = int("embedding" in str(path))  # the batch has no "no class"
        assert dead.sum() == rows_unused, jax.tree_util.keystr(path)


@pytest.mark.parametrize("shape", [(8, 12, 1), (12, 4, 5)])
def test_images_of_any_shape_and_channel_count(make_tiny, make_inputs, randomised, conditioning, shape):
    model, inputs = make_tiny(conditioning=conditioning, depth=1), make_inputs(shape)
    out = jax.jit(model.apply)(randomised(model, inputs), *inputs)
    assert out.shape == inputs[0].shape
    assert np.asarray(out).std(axis=0).min() > 0


def brightness_and_contrast_show(apply, inputs):
    """Returns whether the output shows a change of a patch's mean alone and of its scale alone, for all 16 patches."""
    x, t, labels = inputs
    before, changes = apply(x, t, labels), []
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            patch = x[:, row : row + 2, column : column + 2]
            for other in (patch + 0.5, patch * 2):
                after = apply(x.at[:, row : row + 2, column : column + 2].set(other), t, labels)
                changes.append(np.abs(after - before).max())
    return min(changes) > 1e-3


def test_output_depends_on_each_patches_mean_and_scale(net):
    assert brightness_and_contrast_show(*net)


def test_norm_on_raw_patches_would_be_found_out(make_tiny, make_inputs, randomised, monkeypatch):
    """The report's mistake, introduced on purpose."""
    model, inputs = make_tiny(depth=1), make_inputs()
    params = randomised(model, inputs)
    monkeypatch.setattr(dit, "patchify", lambda x, patch_size: layer_norm(patchify(x, patch_size)))
    apply = jax.jit(lambda x, t, labels: model.apply(params, x, t, labels))
    assert not brightness_and_contrast_show(apply, inputs)


def test_class_and_time_reach_every_pixel(net):
    apply, (x, t, _) = net
    x = x[:1]
    by_label = [apply(x, t[:1], jnp.array([label])) for label in range(6)]  # five classes and "no class"
    by_time = [apply(x, jnp.array([time]), jnp.array([1])) for time in (0, 1, 500, 998, 999)]
    for images in (by_label, by_time):
        for i, one in enumerate(images):
            for other in images[:i]:
                assert (np.abs(one - other) > 1e-7).mean() > 0.99


def test_every_patch_reaches_every_output_patch(net):
    apply, (x, t, labels) = net
    jacobian = jax.jit(jax.jacobian(lambda x: patchify(apply(x, t, labels), 2)[0].sum(-1)))(x)  # [16, 2, 8, 8, 3]
    influence = np.abs(patchify(jacobian[:, 0], 2)).max(-1)
    assert influence.shape == (16, 16)
    assert influence.min() > 1e-6


def test_nothing_leaks_across_the_batch(make_tiny, make_inputs, randomised, conditioning):
    model, (x, t, labels) = make_tiny(conditioning=conditioning, depth=1), make_inputs(n=3)
    params = randomised(model, (x, t, labels))
    gradient = jax.jit(jax.grad(lambda x: jnp.square(model.apply(params, x, t, labels)[1]).sum()))(x)
    assert np.abs(gradient[1]).min() > 0
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[2], 0)
    apply = jax.jit(model.apply)
    other = apply(params, x, t.at[0].set(7), labels.at[2].set(5))
    np.testing.assert_array_equal(other[1], apply(params, x, t, labels)[1])


def test_bfloat16_is_close_and_its_products_are_of_bfloat16(make_tiny, make_inputs, randomised, conditioning):
    inputs = make_inputs()
    single, half = (make_tiny(conditioning=conditioning, depth=1, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = randomised(single, inputs)
    exact, rounded = jax.jit(single.apply)(params, *inputs), jax.jit(half.apply)(params, *inputs)
    assert rounded.dtype == jnp.float32
    error = np.sqrt(np.square(rounded - exact).mean() / np.square(exact).mean())
    assert 1e-5 < error < 0.02
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), *inputs))
    )
    dots = [
        e
        for e in every_equation(jax.make_jaxpr(half.apply)(params, *inputs).jaxpr)
        if e.primitive.name == "dot_general"
    ]
    assert {str(v.aval.dtype) for e in dots for v in e.invars} == {"bfloat16"}


# These do no arithmetic in bfloat16, except that products take it and accumulate in float32.
HARMLESS = {"reshape", "transpose", "layout_constraint", "optimization_barrier", "convert_element_type", "dot_general"}


def uses_bfloat16(equation):
    """Returns whether it reads or makes bfloat16; one with inner jaxprs does not count, as the walk visits those."""
    types = {str(v.aval.dtype) for variables in (equation.invars, equation.outvars) for v in variables}
    return "bfloat16" in types and not list(jaxpr_core.jaxprs_in_params(equation.params))


def test_of_bfloat16_are_products_and_nothing_else(make_tiny, make_inputs, conditioning):
    """Forward and backward: norms, softmax, activations and sums take and give float32, as the README promises."""
    inputs = make_inputs()
    model = make_tiny(conditioning=conditioning, depth=3, qk_norm=True, long_skips=True, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    loss = lambda params: jnp.square(model.apply(params, *inputs)).mean()  # noqa: E731
    equations = list(every_equation(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))
    assert {"exp", "rsqrt", "dot_general"} <= {e.primitive.name for e in equations}
    assert {e.primitive.name for e in equations if uses_bfloat16(e)} - HARMLESS == set()


def test_in_bfloat16_a_backward_pass_keeps_no_large_array_in_float32(make_tiny, conditioning):
    """The large arrays are the MLP's hidden layer, before and after GELU, and attention's weights (performance.md)."""
    inputs = jnp.zeros((3, 16, 16, 3)), jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32)
    model = make_tiny(conditioning=conditioning, depth=1, width=16, num_heads=4, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    kept = [aval for aval, _ in saved_residuals(lambda params: model.apply(params, *inputs).sum(), params)]
    N = (16 // model.patch_size) ** 2 + (conditioning == "token")
    hidden, weights = 3 * N * model.mlp_ratio * 16, 3 * 4 * N * N
    large = [(aval.size, str(aval.dtype)) for aval in kept if aval.size >= hidden]
    assert sorted(large) == sorted([(hidden, "bfloat16"), (hidden, "bfloat16"), (weights, "bfloat16")])


def test_remat_changes_memory_and_nothing_else(make_tiny, make_inputs, randomised):
    inputs = make_inputs()
    plain, remat = (make_tiny(conditioning="adaln_zero", depth=1, remat=remat) for remat in (False, True))
    params = randomised(plain, inputs)

    def value_and_grad(model):
        return jax.value_and_grad(lambda p: jnp.square(model.apply(p, *inputs)).mean())

    def names(model):
        return [e.primitive.name for e in every_equation(jax.make_jaxpr(value_and_grad(model))(params).jaxpr)]

    kinds = ("checkpoint", "remat", "remat2")
    assert sum(name in kinds for name in names(remat)) == 1  # the one block
    assert not any(name in kinds for name in names(plain))
    assert jax.tree.structure(jax.eval_shape(remat.init, jax.random.key(0), *inputs)) == jax.tree.structure(params)
    for one, other in zip(
        jax.tree.leaves(jax.jit(value_and_grad(plain))(params)),
        jax.tree.leaves(jax.jit(value_and_grad(remat))(params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
