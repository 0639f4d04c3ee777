"""The reader of compiled programs, on a text whose kernels are counted by hand."""

import pytest

from benchmarks import hlo

TEXT = """HloModule jit_call, is_scheduled=true

%fused_slice (param_0: f32[100,8], param_1: f32[8]) -> f32[10,8] {
  %param_0 = f32[100,8]{1,0} parameter(0)
  %param_1 = f32[8]{0} parameter(1)
  %bitcast.1 = f32[100,8]{1,0} bitcast(%param_0)
  %twice.1 = f32[100,8]{1,0} add(%bitcast.1, %bitcast.1)
  %slice.1 = f32[10,8]{1,0} slice(%twice.1), slice={[0:10], [0:8]}
  %broadcast.1 = f32[10,8]{1,0} broadcast(%param_1), dimensions={1}
  ROOT %add.1 = f32[10,8]{1,0} add(%slice.1, %broadcast.1)
}

%fused_sum (param_2: f32[100,8]) -> f32[100,8] {
  %param_2 = f32[100,8]{1,0} parameter(0)
  ROOT %add.2 = f32[100,8]{1,0} add(%param_2, %param_2)
}

%fused_update (param_3: f32[100,8], param_4: f32[1,8], param_5: s32[]) -> f32[100,8] {
  %param_3 = f32[100,8]{1,0} parameter(0)
  %param_4 = f32[1,8]{1,0} parameter(1)
  %param_5 = s32[] parameter(2)
  ROOT %update.1 = f32[100,8]{1,0} dynamic-update-slice(%param_3, %param_4, %param_5, %param_5)
}

%fused_dot (parameter_0: bf16[10,8], parameter_1: bf16[8,4]) -> bf16[10,4] {
  %parameter_0 = bf16[10,8]{1,0} parameter(0)
  %parameter_1 = bf16[8,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[10,4]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16]{0} get-tuple-element(%p), index=1
  %negate.1 = f32[16]{0} negate(%x)
  ROOT %tuple.1 = (s32[], f32[16]{0}) tuple(%i, %negate.1)
}

%condition (q: (s32[], f32[16])) -> pred[] {
  ROOT %constant.1 = pred[] constant(true)
}

%small (r: f32[16]) -> f32[16] {
  ROOT %r = f32[16]{0} parameter(0)
}

%large (s: f32[16]) -> f32[16] {
  %s = f32[16]{0} parameter(0)
  ROOT %abs.1 = f32[16]{0} abs(%s)
}

%body (arg: (s32[], f32[100,8], f32[8], bf16[10,8], bf16[8,4], /*index=5*/f32[16])) -> (s32[], f32[16]) {
  %arg = (s32[], f32[100,8]{1,0}, f32[8]{0}, bf16[10,8]{1,0}, bf16[8,4]{1,0}, /*index=5*/f32[16]{0}) parameter(0)
  %data = f32[100,8]{1,0} get-tuple-element(%arg), index=1
  %bias = f32[8]{0} get-tuple-element(%arg), index=2
  %a = bf16[10,8]{1,0} get-tuple-element(%arg), index=3
  %b = bf16[8,4]{1,0} get-tuple-element(%arg), index=4
  %v = f32[16]{0} get-tuple-element(%arg), index=5
  %h = bf16[10,4]{1,0} get-tuple-element(%arg), index=6
  %fusion.1 = f32[10,8]{1,0} fusion(%data, %bias), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(call)/pick"}
  %fusion.2 = bf16[10,4]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot, metadata={op_name="jit(call)/mlp"}
  %c = (f32[8,4]{1,0}, s8[4096]{0}) custom-call(%a, %h), custom_call_target="__cublas$gemm", backend_config=CONFIG
  %start = f32[16]{0} all-reduce-start(%v), replica_groups={{0,1}}, to_apply=%small
  %done = f32[16]{0} all-reduce-done(%start)
  %attention.1 = (f32[16]{0}, u8[0]{0}) custom-call(%v), custom_call_target="__cudnn$fmhaSoftmax"
  %while.1 = (s32[], f32[16]{0}) while(%t), condition=%small, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %choice = f32[16]{0} conditional(%i, %v, %v), branch_computations={%small, %large}
  ROOT %tuple.2 = (s32[], f32[16]{0}) tuple(%i, %done)
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x.1 = f32[16]{0} parameter(0)
  %copy.1 = f32[16]{0} copy(%x.1)
  %while.2 = (s32[], f32[16]{0}) while(%copy.1), condition=%condition, body=%body
  ROOT %out = f32[16]{0} get-tuple-element(%while.2), index=1
}
"""
CONFIG = """{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}"""
TEXT = TEXT.replace("CONFIG", CONFIG)


@pytest.fixture
def step():
    return hlo.longest_loop(hlo.read(TEXT))


def test_every_kernel_of_the_loop_is_there_once_and_of_an_inner_loop_as_often_as_it_turns(step):
    """Two fusions, cuBLAS, a sum over devices, cuDNN's attention, three iterations of a loop, and the larger branch."""
    assert [one.kind for one in step] == ["other", "product", "product", "collective", "attention", *["other"] * 4]
    assert [one.name for one in step[-4:]] == ["negate.1"] * 3 + ["abs.1"]
    assert step[1].source == "jit(call)/mlp"


def test_bytes_by_hand(step):
    """Ten of 100 rows are read; a product reads both operands in bfloat16; elsewhere 16 numbers go in and out."""
    picked = 10 * 8 * 4 + 8 * 4 + 10 * 8 * 4
    product, blas = (10 * 8 + 8 * 4 + 10 * 4) * 2, (10 * 8 + 10 * 4) * 2 + 8 * 4 * 4  # without the 4096 of scratch
    assert [one.bytes for one in step] == [picked, product, blas, *[2 * 16 * 4] * 6]


def test_products_by_hand(step):
    assert [one.flops for one in step] == [0, 2 * 10 * 8 * 4, 2 * 10 * 8 * 4, *[0] * 6]


def test_a_kernel_takes_what_memory_or_what_the_matrix_units_take():
    one = hlo.Kernel("product", bytes=300, flops=1000, name="", source="")
    assert one.seconds(bytes_per_second=100, flops_per_second=1000) == 3
    assert one.seconds(bytes_per_second=100, flops_per_second=100) == 10


OTHERS = """
ENTRY %main (x: f32[100,8], y: f32[1,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %y = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %sum = f32[100,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_sum
  %gather = ((f32[1,8]{1,0}), (f32[2,8]{1,0})) all-gather-start(%y), replica_groups={{0,1}}
  ROOT %updated = f32[100,8]{1,0} fusion(%sum, %y, %i), kind=kLoop, calls=%fused_update
}
"""


def test_a_sum_is_read_whole_a_gathering_once_and_of_an_update_only_what_is_new():
    found = hlo.longest_loop(hlo.read(TEXT[: TEXT.index("ENTRY")] + OTHERS))
    assert [one.bytes for one in found] == [2 * 100 * 8 * 4, (1 + 2) * 8 * 4, 2 * 8 * 4 + 4]


UPDATES = """
%twice (p: f32[100,8], u: f32[1,8], v: f32[2,8], i: s32[]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %v = f32[2,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %first = f32[100,8]{1,0} dynamic-update-slice(%p, %u, %i, %i)
  ROOT %second = f32[100,8]{1,0} dynamic-update-slice(%first, %v, %i, %i)
}

%fresh (w: f32[1,8], j: s32[]) -> f32[100,8] {
  %w = f32[1,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %zero = f32[] constant(0)
  %zeros = f32[100,8]{1,0} broadcast(%zero), dimensions={}
  ROOT %set = f32[100,8]{1,0} dynamic-update-slice(%zeros, %w, %j, %j)
}

ENTRY %main (x: f32[100,8], y: f32[1,8], z: f32[2,8], k: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %y = f32[1,8]{1,0} parameter(1)
  %z = f32[2,8]{1,0} parameter(2)
  %k = s32[] parameter(3)
  %both = f32[100,8]{1,0} fusion(%x, %y, %z, %k), kind=kLoop, calls=%twice
  ROOT %new = f32[100,8]{1,0} fusion(%y, %k), kind=kLoop, calls=%fresh
}
"""


def test_two_updates_of_one_array_are_both_written_and_an_update_of_a_new_one_is_written_whole():
    found = hlo.longest_loop(hlo.read(UPDATES))
    assert [one.bytes for one in found] == [2 * (1 + 2) * 8 * 4 + 4, 8 * 4 + 4 + 100 * 8 * 4]


def test_a_program_without_a_loop_is_read_whole():
    text = "ENTRY %main (x: f32[4]) -> f32[4] {\n  %x = f32[4]{0} parameter(0)\n  ROOT %y = f32[4]{0} negate(%x)\n}\n"
    assert [one.bytes for one in hlo.longest_loop(hlo.read(text))] == [32]
