"""Reads kernels from the text of a program that XLA compiled: what each reads and writes, and its matrix products.

The text is a list of computations. Each has a header and one instruction per line:

    %fused_dot (a: bf16[10,8], b: bf16[8,4]) -> bf16[10,4] {
      %a = bf16[10,8]{1,0} parameter(0)
      %b = bf16[8,4]{1,0} parameter(1)
      ROOT %dot.1 = bf16[10,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    }

A kernel is an instruction of the entry computation, or of a loop in it, such as a fusion of the computation above:

    %fusion.2 = bf16[10,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused_dot, metadata={op_name="jit(call)/mlp"}
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# Instructions that run no kernel: they name values that are already in memory.
NO_WORK = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "replica-id"}
# These read no more of their first operand than their result has: f32[10,8] slice(%x) reads ten rows of %x, f32[100,8].
PARTS = {"slice", "dynamic-slice", "gather"}
# Works in place: f32[100,8] dynamic-update-slice(%x, %row, %i, %j) reads nothing of %x, and writes only %row.
UPDATE = "dynamic-update-slice"
# Element by element: add(%x, %y) reads only those elements of %x and %y whose sums are used.
BY_ELEMENT = {"bitcast", "convert", "copy", "add", "subtract", "multiply"}

COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
TARGET, CUBLAS = r'custom_call_target="([^"]*)"', "__cublas$"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # such as `bf16[4,8]{1,0}`, or several in parentheses
    operation: str
    operands: tuple[str, ...]
    rest: str  # the line after the parenthesis that opens its operands

    def find(self, pattern: str) -> str:
        """Returns the first group of a pattern's match in `rest`; empty without a match."""
        found = re.search(pattern, self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Kernel:
    """What the GPU is given to do in one launch."""

    kind: str  # see `kind_of`
    bytes: int  # read and written, as if nothing were in a cache
    flops: int  # of its matrix products; those in cuDNN's attention are not visible
    name: str
    source: str  # its op_name: where it comes from in the program

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Returns the least time that it can take."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


Computations = dict[str, list[Instruction]]
ENTRY = ""  # the key of the computation with which the program begins


def read(text: str) -> Computations:
    """Returns the computations of a module by name; the one marked ENTRY is also under the key ENTRY."""
    found: Computations = {}
    lines: list[Instruction] = []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if match := COMPUTATION.match(line):
            lines = found.setdefault(match.group(2), [])
            if match.group(1):
                found[ENTRY] = lines
        elif match := INSTRUCTION.match(line):
            name, shape, operation, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[: closing(rest)]))
            lines.append(Instruction(name, shape, operation, operands, rest))
    return found


def closing(rest: str) -> int:
    """Returns the index of the parenthesis that closes the one opened just before `rest`."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return len(rest)


def dimensions(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, sizes) of every array of a shape: `(bf16[4,8]{1,0}, s32[])` has ("bf16", (4, 8)), ("s32", ())."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in found if dtype in BYTES]


def size(shape: str) -> int:
    """Returns the bytes of all arrays of a shape."""
    return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in dimensions(shape))


def longest_loop(computations: Computations) -> list[Kernel]:
    """Returns the kernels of one pass of the loop with the most kernels, such as a train step; without a loop, all."""
    whiles = [line for line in computations[ENTRY] if line.operation == "while"]
    bodies = [list(kernels(computations, line.find(r"body=%([\w.\-]+)"))) for line in whiles]
    return max(bodies, key=len) if bodies else list(kernels(computations, ENTRY))


def kernels(computations: Computations, name: str) -> Iterator[Kernel]:
    """Yields the kernels of a computation in the order in which they run, those of inner loops once per turn."""
    lines = computations[name]
    shapes = {line.name: line.shape for line in lines}
    for line in lines:
        inner = line.find(r"(?:calls|to_apply|body)=%([\w.\-]+)")
        # while(%t), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"3"}}: three times the kernels of %b
        if line.operation in ("while", "call"):
            turns = int(line.find(r'"known_trip_count":\{"n":"(\d+)"') or 1)
            yield from [*kernels(computations, inner)] * turns
        elif line.operation == "conditional":  # its branch that moves the most bytes
            # conditional(%i, %v, %v), branch_computations={%small, %large}, or true_computation=%large and so on
            names = re.findall(r"%([\w.\-]+)", line.find(r"branch_computations=\{(.*?)\}"))
            names += [line.find(rf"{which}_computation=%([\w.\-]+)") for which in ("true", "false")]
            branches = [[*kernels(computations, each)] for each in names if each]
            yield from max(branches, key=lambda found: sum(one.bytes for one in found))
        # %done = f32[16]{0} all-reduce-done(%start) only waits for the kernel that %start began
        elif line.operation not in NO_WORK and not line.operation.endswith("-done"):
            yield kernel(line, shapes, computations.get(inner, []))


def kernel(line: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> Kernel:
    """Returns the kernel of a line; `inner` are the instructions that it fuses."""
    inside = {one.name: one.shape for one in inner}
    flops = sum(product_flops(one, inside) for one in inner) + product_flops(line, shapes)
    moved = written_bytes(line, shapes, inner) + read_bytes(line, shapes, inner)
    return Kernel(kind_of(line, flops), moved, flops, line.name, line.find(r'op_name="([^"]*)"'))


def written_bytes(line: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> int:
    """Returns the bytes of a kernel's results; of results that it updates in place, only of what is new."""
    # (f32[8,4]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm": the s8 is scratch memory
    if CUBLAS in line.find(TARGET):
        return size(re.sub(r"s8\[\d+\]", "", line.shape))
    # ((f32[1,8]{1,0}), (f32[2,8]{1,0})) all-gather-start(%y): its shape lists the operands, which are not written, too
    if line.shape.startswith("(("):
        return size(line.shape) - sum(size(shapes.get(operand, "")) for operand in line.operands)
    # Of `%u = f32[100,8]{1,0} dynamic-update-slice(%p, %row, %i, %i)`, with a parameter %p, only %row is written, and
    # of a further update of %u only its row. An update of an array that the kernel itself makes is written whole.
    inside = {one.name: one for one in inner}
    total = size(line.shape)
    for one in inner:
        if one.operation == UPDATE:
            of = inside[one.operands[0]]
            while of.operation == "bitcast":
                of = inside[of.operands[0]]
            total += size(inside[one.operands[1]].shape) if of.operation in ("parameter", UPDATE) else 0
            total -= size(one.shape) if of.operation == "parameter" else 0
    return total


def read_bytes(line: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> int:
    """Returns the bytes that a kernel reads: its operands, or parts of them if it uses no more."""
    # `%p = f32[100,8]{1,0} parameter(0)` is operand 0. If it is only sliced, gathered from or updated, then only the
    # results of the slices and gathers are read.
    parameters = {int(one.find(r"^(\d+)")): one.name for one in inner if one.operation == "parameter"}
    total = 0
    for i, operand in enumerate(line.operands):
        whole, arrays = size(shapes.get(operand, "")), dimensions(shapes.get(operand, ""))
        uses = list(uses_of(parameters.get(i, ""), inner))
        if uses and len(arrays) == 1 and all(first and one.operation in {*PARTS, UPDATE} for one, first in uses):
            numbers = sum(elements(one.shape) for one, _ in uses if one.operation != UPDATE)
            whole = min(whole, numbers * BYTES[arrays[0][0]])
        total += whole
    return total


def uses_of(name: str, inner: list[Instruction]) -> Iterator[tuple[Instruction, bool]]:
    """Yields (instruction that uses a value, whether as its first operand), beyond what works element by element."""
    for one in inner:
        if name in one.operands:
            beyond = list(uses_of(one.name, inner)) if one.operation in BY_ELEMENT else []
            yield from beyond or [(one, one.operands[0] == name)]


def elements(shape: str) -> int:
    """Returns how many elements the arrays of a shape have."""
    return sum(math.prod(sizes) for _, sizes in dimensions(shape))


def product_flops(line: Instruction, shapes: dict[str, str]) -> int:
    """Returns the FLOPs of a `dot` or a call of cuBLAS: two per element of the result and element summed over; else 0.

    `dot(%a, %b), lhs_contracting_dims={1}, ...` of bf16[10,8] and bf16[8,4] has 2 * 10 * 4 * 8. For cuBLAS, the axes
    are in the backend_config: `"lhs_contracting_dimensions":["1"]`.
    """
    if line.operation == "dot":
        axes = line.find(r"lhs_contracting_dims=\{([\d,]*)\}")
    elif CUBLAS in line.find(TARGET):
        axes = line.find(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
    else:
        return 0
    (_, left), (_, out) = dimensions(shapes[line.operands[0]])[0], dimensions(line.shape)[0]
    summed = [int(axis) for axis in re.findall(r"\d+", axes)]
    return 2 * math.prod(out) * math.prod(left[axis] for axis in summed)


def kind_of(line: Instruction, flops: int) -> str:
    """Returns `product`, `attention` (cuDNN's), `collective` or `other`."""
    if flops:
        return "product"
    if "fmha" in line.find(TARGET):
        return "attention"
    between = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return "collective" if line.operation.startswith(between) else "other"
