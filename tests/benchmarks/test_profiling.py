"""What a profile says about a step, with events and kernels counted by hand."""

from types import SimpleNamespace

import pytest

from benchmarks import profiling
from benchmarks.hlo import Kernel


def line(name, *events):
    """A line of a profile with events (name, nanoseconds)."""
    made = [SimpleNamespace(name=event, duration_ns=duration) for event, duration in events]
    return SimpleNamespace(name=name, events=made)


def test_only_what_ran_in_the_streams_of_gpus_counts():
    gpus = [
        SimpleNamespace(
            name="/device:GPU:0",
            lines=[
                line("Stream #13(Compute)", ("fusion_2", 2e6), ("gemm", 5e5), ("fusion_2", 3e6)),
                line("Stream #14(MemcpyD2D)", ("fusion_2", 1e6)),
                line("XLA Ops", ("fusion_2", 7e9)),
            ],
        ),
        SimpleNamespace(name="/device:GPU:1", lines=[line("Stream #1", ("gemm", 25e4))]),
    ]
    host = SimpleNamespace(name="/host:CPU", lines=[line("Stream #13(Compute)", ("fusion_2", 9e9), ("python", 1.0))])
    assert profiling.times([host, *gpus]) == {"fusion_2": (3, 6.0), "gemm": (1, 0.5)}
    assert profiling.times([host]) == {}


BLOCK = "jit(call)/while/body/transpose(jvp(DiT))/DiT._blocks/block_{}/mlp/Dense_0/reduce_sum"


def test_the_rows_of_a_step_by_hand():
    """Two steps on a card of 1 GB/s and 1 TFLOP/s: a MB takes 1 ms, and so does a GFLOP.

    The kernels of block_1 and block_0 share a row; the former ran under the latter's name, four times in two steps.
    """
    compiled = [
        Kernel("product", 2_000_000, 5 * 10**9, "gemm.1", "jit(call)/while/body/jvp(DiT)/final/dot_general"),  # 5 ms
        Kernel("product", 3_000_000, 10**9, "gemm.2", "jit(call)/while/body/jvp(DiT)/final/dot_general"),  # 3 ms
        Kernel("attention", 4_000_000, 0, "custom-call.7", "jit(call)/while/body/jvp(DiT)/fmha"),
        Kernel("other", 1_000_000, 0, "loop_fusion.3", BLOCK.format(0)),
        Kernel("other", 1_000_000, 0, "loop_fusion.4", BLOCK.format(1)),
        Kernel("other", 500_000, 0, "input-fusion", "jit(call)/while/body/jvp(DiT)/sub"),
    ]
    measured = {
        "nvjet_tst_128x256_64x4_2x1_v_bz_NNT": (4, 12.0),
        "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm>": (2, 2.0),
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma": (2, 9.0),
        "loop_fusion_3": (4, 6.0),
        "input_fusion": (2, 1.0),
        "MemcpyD2D": (2, 0.5),
    }
    rows = {row.pop("what"): row for row in profiling.rows(measured, compiled, 2, (1e9, 1e12))}
    assert list(rows) == ["products", "attention", "backward: mlp/Dense_0/reduce_sum", "forward: sub", "unnamed"]
    assert rows["products"] == {"calls": 3, "ms": 7.0, "at_best_ms": pytest.approx(8.0)}
    assert rows["attention"] == {"calls": 1, "ms": 4.5, "at_best_ms": pytest.approx(4.0)}
    assert rows["backward: mlp/Dense_0/reduce_sum"] == {"calls": 2, "ms": 3.0, "at_best_ms": pytest.approx(2.0)}
    assert rows["forward: sub"] == {"calls": 1, "ms": 0.5, "at_best_ms": pytest.approx(0.5)}
    assert rows["unnamed"] == {"calls": 1, "ms": 0.25, "at_best_ms": 0.0}


def test_kernels_of_ours_run_under_their_own_names():
    """If one kernel has two programs, XLA adds a number to the second's name."""
    inside = "jit(call)/while/body/jvp(DiT)/DiT._blocks/block_{}/cond/branch_0_fun/norm_kernel/pallas_call"
    compiled = [Kernel("other", 1_000_000, 0, f"pallas_call.{i}", inside.format(i)) for i in range(2)]
    (row,) = profiling.rows({"norm_kernel": (2, 3.0), "norm_kernel__1": (2, 5.0)}, compiled, 2, (1e9, 1e12))
    what = "forward: cond/branch_0_fun/norm_kernel/pallas_call"
    assert row == {"what": what, "calls": 2, "ms": 4.0, "at_best_ms": pytest.approx(2.0)}


def test_what_has_the_time_of_another_is_a_row_without_time():
    """XLA runs equal kernels of different purpose under the name of one of them."""
    compiled = [Kernel("other", 10**6, 0, f"fusion.{i}", f"jit(call)/while/body/{name}") for i, name in enumerate("ab")]
    rows = profiling.rows({"fusion_0": (2, 3.0)}, compiled, 1, (1e9, 1e12))
    assert [(row["what"], row["calls"], row["ms"], row["at_best_ms"]) for row in rows] == [
        ("a", 2, 3, 1),
        ("b", 0, 0, 1),
    ]


@pytest.mark.parametrize(
    ("source", "purpose"),
    [
        (
            "jvp(DiT)/DiT._blocks/block_11/attention/qkv/rd,df->rf/dot_general",
            "forward: attention/qkv/rd,df->rf/dot_general",
        ),
        ("jvp(DiT)/DiT._blocks/block_0/rsqrt", "forward: rsqrt"),
        ("jvp(DiT)/DiT._condition/time/Dense_0/mul", "forward: time/Dense_0/mul"),
        ("jvp()/gather", "forward: gather"),
        ("transpose(jvp(DiT))/DiT._blocks/block_3/mlp/Dense_0/reduce_sum", "backward: mlp/Dense_0/reduce_sum"),
        ("transpose(jvp(DiT))/DiT._embed_patches/patch/reduce_sum", "backward: patch/reduce_sum"),
        ("transpose(jvp(DiT))/pad", "backward: pad"),
        ("sqrt", "sqrt"),
        ("jit(_where)/select_n", "jit(_where)/select_n"),
    ],
)
def test_where_in_the_network_a_kernel_comes_from(source, purpose):
    """These op_names are from a compiled train step."""
    assert profiling.purpose_of(f"jit(call)/while/body/{source}") == purpose


def test_a_kernel_without_a_source_has_no_purpose():
    assert profiling.purpose_of("") == ""
