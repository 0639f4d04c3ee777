"""Reads tensors from a file that PyTorch saved, without PyTorch and without unpickling.

Such a file describes its tensors by a pickle, a program that Python's `pickle` would run and that may call anything.
Here it is read as data: `pickletools` lists its instructions, and a small machine follows those that a dict of tensors
is made of. A function that the file names is only a text to it. The caller checks the file's hash first, so the machine
need not guard against numbers that are out of range.

The format is the one before PyTorch 1.6, a stream of pickles and raw storages. Source: `_legacy_save` in
torch/serialization.py of PyTorch.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np

DTYPES = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}

Storages = dict[str, np.ndarray]  # flat arrays, which the file keeps outside the pickle, by key


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Returns the tensors of a saved state dict by name, float32 or int64, from the bytes of a file with a known hash.

    Raises ValueError if its pickle calls anything else than a state dict needs.
    """
    file = io.BytesIO(content)
    for _ in ("magic number", "version", "sizes of the machine's types"):
        _build(file, {})
    storages: Storages = {}
    tensors = _build(file, storages)
    for key in _build(file, {}):
        file.read(8)  # the number of elements
        storages[key][:] = np.frombuffer(file.read(storages[key].nbytes), storages[key].dtype)
    return tensors


def _build(file: BinaryIO, storages: Storages) -> Any:
    """Returns what one pickle describes, and leaves the file just behind it.

    Tensors are views of arrays that it adds to `storages`, to be filled. Stack and memo are those of the pickle
    machine.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, value, _ in pickletools.genops(file):
        name, argument = opcode.name, cast("Any", value)
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "BINPERSID":  # ("storage", type, key, device, number of elements); older files add a None
            _, storage_type, key, _, count, *_ = stack.pop()
            stack.append(storages.setdefault(key, np.empty(count, DTYPES[storage_type])))
        elif name in LITERALS:
            stack.append(LITERALS[name](argument))
        elif name in COMMANDS:
            COMMANDS[name](stack)
        elif name != "PROTO":
            raise ValueError(f"the pickle asks for {name}, which no file of tensors does")
    raise AssertionError("genops raises ValueError where a pickle does not end")


def _call(stack: list[Any]) -> None:
    """Carries out the two calls that a state dict consists of; neither calls anything that the file names."""
    arguments, function = stack.pop(), stack.pop()
    if function == "collections OrderedDict":
        stack.append(dict(*arguments))
    elif function == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, strides, *_ = arguments  # offset and strides count elements
        steps = [stride * storage.itemsize for stride in strides]
        stack.append(np.lib.stride_tricks.as_strided(storage[offset:], shape, steps))
    else:
        raise ValueError(f"the pickle calls {str(function)[:60]!r}, which no file of tensors does")


MARK = object()  # marks where a tuple, or a run of items, begins on the stack


def _since_mark(stack: list[Any]) -> list[Any]:
    start = max(i for i, value in enumerate(stack) if value is MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _tuple(size: int) -> Callable[[list[Any]], None]:
    def pack(stack: list[Any]) -> None:
        items = stack[-size:]
        del stack[-size:]
        stack.append(tuple(items))

    return pack


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    stack[-1].append(value)


def _append_all(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].extend(items)


LITERAL_NAMES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "GLOBAL")  # a global is "module name"
# Opcodes that push a value.
LITERALS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(LITERAL_NAMES, lambda value: value),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "MARK": lambda _: MARK,
}
# Opcodes that only use the stack.
COMMANDS: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _append_all,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "REDUCE": _call,
    "BUILD": list.pop,  # drops attributes of the dict, such as its version
}
