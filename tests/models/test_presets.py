"""Sizes of the presets, each against a count worked out by hand or printed in a paper."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from dit_jax.models.dit import DIT_SIZES, PRESETS, DiT


def build(preset, num_classes, **changes):
    settings = dict(mlp_ratio=4, class_table_width=128, dtype=jnp.float32, remat=False)
    settings |= dict(qk_norm=False, long_skips=False, dropout=0.0) | PRESETS[preset] | changes
    return DiT(num_classes=num_classes, **settings)


def count(preset, image_shape, num_classes):
    model = build(preset, num_classes)
    zero = jax.ShapeDtypeStruct((1,), jnp.int32)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, jax.random.key(0)), image, zero, zero)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def dense(inputs, outputs):
    return inputs * outputs + outputs


def test_report_has_19_096_624_parameters():
    """The report on CIFAR-10: 4x4 patches, 3 channels, width 384, depth 12, 8 query and 2 key/value heads of 48."""
    patch_embedding = dense(4 * 4 * 3, 384)  # 18,816
    time = dense(256, 384) + dense(384, 384)  # 246,528
    label = (10 + 1) * 128 + dense(128, 384) + dense(384, 384)  # 198,784; ten classes and "no class"
    attention = dense(384, (8 + 2 + 2) * 48) + dense(8 * 48, 384)  # 221,760 + 147,840
    mlp = dense(384, 4 * 384) + dense(4 * 384, 384)  # 591,360 + 590,208
    layer_norms = positions = 0  # norms have no parameters; positions are a fixed table
    output = dense(384, 4 * 4 * 3)  # 18,480
    total = patch_embedding + time + label + 12 * (attention + mlp + layer_norms) + positions + output
    assert total == 19_096_624
    assert count("report", (32, 32, 3), 10) == total


@pytest.mark.parametrize(("conditioning", "tokens"), [("token", 64 + 1), ("adaln_zero", 64)])
def test_report_has_64_patches_and_one_token(conditioning, tokens):
    model = build("report", 10, depth=1, conditioning=conditioning)
    zero = jnp.zeros((1,), jnp.int32)
    _, state = jax.eval_shape(
        partial(model.init_with_output, jax.random.key(0), capture_intermediates=True),
        jnp.zeros((1, 32, 32, 3)),
        zero,
        zero,
    )
    assert state["intermediates"]["block_0"]["__call__"][0].shape == (1, tokens, 384)


def by_paper(width, depth, patch):
    """A DiT of the official code on 32x32x4 latents: 1000 + 1 classes, learned variance, no position table."""
    attention = dense(width, 3 * width) + dense(width, width)
    mlp = dense(width, 4 * width) + dense(4 * width, width)
    block = attention + mlp + dense(width, 6 * width)
    time = dense(256, width) + dense(width, width)
    output = dense(width, 2 * width) + dense(width, patch**2 * 8)
    return dense(patch**2 * 4, width) + time + 1001 * width + depth * block + output


# Millions of parameters of DiT-size/(2, 4, 8): Peebles & Xie 2023, tables 1 and 4.
PAPER = {"S": (33, 33, 33), "B": (130, 130, 131), "L": (458, 458, 459), "XL": (675, 675, 676)}


@pytest.mark.parametrize("size", ["S", "B", *(pytest.param(size, marks=pytest.mark.slow) for size in ("L", "XL"))])
def test_sizes_are_the_papers(size):
    shape = DIT_SIZES[size]
    totals = [by_paper(shape["width"], shape["depth"], patch) for patch in (2, 4, 8)]
    assert tuple(round(total / 1e6) for total in totals) == PAPER[size]
    ours = totals[0] - dense(shape["width"], 2**2 * 4)  # predicts no variance: 4 channels instead of 8
    assert count(f"DiT-{size}/2", (32, 32, 4), 1000) == ours


@pytest.mark.medium
def test_xl_2_against_the_official_codes_count():
    """The official DiT-XL/2 reports 675,129,632; ours lacks its position table (256 x 1152) and 16 variance outputs."""
    assert by_paper(1152, 28, 2) + 256 * 1152 == 675_129_632
    assert count("DiT-XL/2", (32, 32, 4), 1000) == 675_129_632 - 256 * 1152 - (1152 * 16 + 16)


def test_every_dit_of_the_paper_has_a_preset():
    names = {f"DiT-{size}/{patch}" for size in PAPER for patch in (2, 4, 8)}
    assert set(PRESETS) == names | {"report", "demo"}
    for name in names:
        preset = PRESETS[name]
        assert preset["patch_size"] == int(name[-1])
        assert preset["num_kv_heads"] == preset["num_heads"]
        assert preset["conditioning"] == "adaln_zero"
    assert [DIT_SIZES[size]["num_heads"] for size in PAPER] == [6, 12, 16, 16]  # table 1
