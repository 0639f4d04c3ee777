"""Kernels of a program that XLA compiled, read from its text: what each reads and writes, and its matrix products."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
NO_WORK = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "replica-id"}
PARTS = {"slice", "dynamic-slice", "gather"}  # of their first operand they read what they give, or less
UPDATE = "dynamic-update-slice"  # in place: of its first operand nothing is read, and only its second is written
# Of an operand these read what is used of their results.
BY_ELEMENT = {"bitcast", "convert", "copy", "add", "subtract", "multiply"}

COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
TARGET, CUBLAS = r'custom_call_target="([^"]*)"', "__cublas$"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # such as `bf16[4,8]{1,0}`, or several of them in parentheses
    operation: str
    operands: tuple[str, ...]
    rest: str  # from its operands on

    def find(self, pattern: str) -> str:
        """The first group of a pattern in `rest`; empty without a match."""
        found = re.search(pattern, self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Kernel:
    """What the GPU is asked to do at once."""

    kind: str  # of `kind_of`
    bytes: int  # read and written; nothing is taken to be in a cache already
    flops: int  # of its matrix products; those within cuDNN's attention are not seen
    name: str
    source: str  # where the program says it

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The least it can take."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


Computations = dict[str, list[Instruction]]
ENTRY = ""  # the name of the first


def read(text: str) -> Computations:
    """The computations of a module, by name; the one that it begins with is also that of ENTRY."""
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
    """Where the parenthesis ends that was opened before `rest`."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return len(rest)


def dimensions(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, sizes) of every array of a shape."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in found if dtype in BYTES]


def size(shape: str) -> int:
    """Bytes of all its arrays."""
    return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in dimensions(shape))


def longest_loop(computations: Computations) -> list[Kernel]:
    """The kernels of one pass of the loop that has the most of them, such as a train step; without a loop, all."""
    whiles = [line for line in computations[ENTRY] if line.operation == "while"]
    bodies = [list(kernels(computations, line.find(r"body=%([\w.\-]+)"))) for line in whiles]
    return max(bodies, key=len) if bodies else list(kernels(computations, ENTRY))


def kernels(computations: Computations, name: str) -> Iterator[Kernel]:
    """Those of a computation, in the order in which they run; loops within it as often as they turn."""
    lines = computations[name]
    shapes = {line.name: line.shape for line in lines}
    for line in lines:
        inner = line.find(r"(?:calls|to_apply|body)=%([\w.\-]+)")
        if line.operation in ("while", "call"):
            turns = int(line.find(r'"known_trip_count":\{"n":"(\d+)"') or 1)
            yield from [*kernels(computations, inner)] * turns
        elif line.operation == "conditional":  # of its branches the one that does more
            names = re.findall(r"%([\w.\-]+)", line.find(r"branch_computations=\{(.*?)\}"))
            names += [line.find(rf"{which}_computation=%([\w.\-]+)") for which in ("true", "false")]
            branches = [[*kernels(computations, each)] for each in names if each]
            yield from max(branches, key=lambda found: sum(one.bytes for one in found))
        elif line.operation not in NO_WORK and not line.operation.endswith("-done"):
            yield kernel(line, shapes, computations.get(inner, []))


def kernel(line: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> Kernel:
    """A line that is a kernel; `inner` is what it fuses."""
    inside = {one.name: one.shape for one in inner}
    flops = sum(product_flops(one, inside) for one in inner) + product_flops(line, shapes)
    moved = written_bytes(line, shapes, inner) + read_bytes(line, shapes, inner)
    return Kernel(kind_of(line, flops), moved, flops, line.name, line.find(r'op_name="([^"]*)"'))


def written_bytes(line: Instruction, shapes: dict[str, str], inner: list[Instruction]) -> int:
    """Its results, of those that it updates in place only what is new."""
    if CUBLAS in line.find(TARGET):  # its second result is memory that it is lent
        return size(re.sub(r"s8\[\d+\]", "", line.shape))
    if line.shape.startswith("(("):  # a sum or a gathering between devices that begins: ((operands), (results))
        return size(line.shape) - sum(size(shapes.get(operand, "")) for operand in line.operands)
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
    """What a kernel reads: its operands, or the parts of them that are all it uses."""
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
    """(who uses a value of a kernel, whether as its first operand), beyond what works number by number."""
    for one in inner:
        if name in one.operands:
            beyond = list(uses_of(one.name, inner)) if one.operation in BY_ELEMENT else []
            yield from beyond or [(one, one.operands[0] == name)]


def elements(shape: str) -> int:
    """How many numbers its arrays have."""
    return sum(math.prod(sizes) for _, sizes in dimensions(shape))


def product_flops(line: Instruction, shapes: dict[str, str]) -> int:
    """Of a `dot`, or a call of cuBLAS: two for each number of its result and each that is summed over."""
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
    """`product`, `attention` (cuDNN's), `collective`, or `other`."""
    if flops:
        return "product"
    if "fmha" in line.find(TARGET):
        return "attention"
    between = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return "collective" if line.operation.startswith(between) else "other"
