"""The count of products: by hand for the report's model, and from the program that JAX traces."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from benchmarks import flops
from configs import default
from dit_jax.experiment import Experiment
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve

pytestmark = pytest.mark.medium

CIFAR10 = (32, 32, 3)


def experiment(*assignments):
    config = default.get_config().lock()
    configs.override(config, assignments)
    return Experiment(resolve(config))


def test_the_reports_model_by_hand():
    """D = 384, 65 tokens, 8 query heads of 48 on 2 key/value heads, MLP 1536: each product written out."""
    qkv, out, mlp = 65 * 384 * (384 + 96 + 96), 65 * 384 * 384, 2 * 65 * 384 * 1536
    attention = 8 * 65 * 65 * 48 * 2
    condition = 256 * 384 + 384 * 384 + 128 * 384 + 384 * 384
    products = 12 * (qkv + attention + out + mlp) + condition + 2 * 64 * 48 * 384
    assert flops.forward(experiment().model, CIFAR10) == 2 * products


def dots(jaxpr):
    """Returns the sum over all matrix products: 2 x (elements of the result) x (length of the axes summed over)."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * length
        for inner in jaxprs_in_params(equation.params):
            total += dots(inner)
    return total


SHAPES = [
    (),
    ("model.patch_size=2", "model.num_heads=6", "model.num_kv_heads=3", "model.depth=2"),
    ("model.conditioning=adaln_zero", "model.width=192", "model.depth=5", "model.mlp_ratio=3"),
    ("model.long_skips=true", "model.qk_norm=true", "model.depth=4"),
    ("model.long_skips=true", "model.depth=7", "model.width=192"),
    ("model.preset=DiT-S/8", "model.conditioning=token", "model.class_table_width=20", "model.remat=true"),
]


@pytest.mark.parametrize("assignments", SHAPES)
def test_the_count_is_that_of_the_traced_program(assignments):
    made = experiment(*assignments)
    x, t = jnp.zeros((3, *CIFAR10)), jnp.zeros((3,), jnp.int32)
    traced = jax.make_jaxpr(made.apply)(jax.eval_shape(made.init_params), x, t, t)
    assert dots(traced.jaxpr) == 3 * flops.forward(made.model, CIFAR10)


def test_training_is_three_forward_passes_but_for_what_needs_no_gradient():
    """Only the gradients with respect to the pixels and the sinusoid are not needed: those two products are missing.

    The class table's gradient, of 11 rows of 128, is a product that no forward pass has.
    """
    made = experiment("model.depth=2", "model.width=64")
    params = jax.eval_shape(made.init_params)
    x, t = jnp.zeros((1, *CIFAR10)), jnp.zeros((1,), jnp.int32)
    loss = lambda params: made.apply(params, x, t, t).sum()  # noqa: E731
    found = dots(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    needless, table = 2 * 64 * 48 * 64 + 2 * 256 * 64, 2 * 11 * 128
    assert flops.training(made.model, CIFAR10) - (found - table) in (0, needless)


def test_guidance_asks_twice():
    model = experiment().model
    once = flops.forward(model, CIFAR10)
    assert flops.sampling(model, CIFAR10, evaluations=50, guided=False) == 50 * once
    assert flops.sampling(model, CIFAR10, evaluations=50, guided=True) == 100 * once
