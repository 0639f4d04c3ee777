"""Reads tensors from a file that PyTorch saved, without PyTorch and without unpickling.

Such a file describes its tensors by a pickle, a program that Python's `pickle` would run and that may call anything.
Here it is read as data: `pickletools` lists its instructions, and a small machine follows those that build numbers,
strings, lists and dicts. The machine never calls a function that the file names: it knows two names, and refuses to
call any other.

Both formats are read: the zip archive (PyTorch 1.6 and newer), and the older stream of pickles and raw storages.
Source: torch/serialization.py of PyTorch (legacy: `_legacy_save`, zip: `_save`).
"""

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from dit_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
LIMIT = 1 << 30  # bytes: ten times the size of the file that this module is for


class _Unreadable(Exception):
    """Says what is wrong with the file; the caller adds the file's name."""


class Name(NamedTuple):
    """A function or class that the pickle names; it is never looked up."""

    module: str
    name: str


class Storage(NamedTuple):
    """A flat array that the file stores outside the pickle."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a saved state dict by name, float32 or int64.

    Raises UserError if the file is not such a file, holds anything but tensors, or is damaged.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise _Unreadable(f"its {path.stat().st_size} bytes are too many")
        with path.open("rb") as file:
            root, arrays = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        if not isinstance(root, dict) or not all(isinstance(value, Tensor) for value in root.values()):
            raise _Unreadable("it holds something other than a dict of tensors")
        return {str(name): _view(tensor, arrays) for name, tensor in root.items()}
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): give a file of saved weights") from None
    except (_Unreadable, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is refused as a file of PyTorch weights: {error}; download it again") from None
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, OverflowError) as error:
        # What a malformed program makes the reader's own operations on lists and dicts raise.
        reason = f"its pickle is malformed ({type(error).__name__})"
        raise UserError(f"{path} is refused as a file of PyTorch weights: {reason}; download it again") from None


def _view(tensor: Tensor, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a copy of the tensor's elements. Raises _Unreadable if it reaches outside its storage."""
    flat = arrays[tensor.storage.key]
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise _Unreadable("a tensor has an impossible shape")
    elements = int(np.prod(tensor.shape, dtype=object))
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if elements > flat.size or (elements and last >= flat.size):
        raise _Unreadable("a tensor reaches outside its data")
    strides = [step * flat.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.copy()


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns what the pickle builds, and the storages by key."""
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Unreadable("its archive is compressed, which PyTorch's are not")
        names = archive.namelist()
        (pickled,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise _Unreadable("its numbers are big-endian")
        storages: dict[str, Storage] = {}
        root = _build(io.BytesIO(archive.read(pickled)), storages)
        arrays = {key: _array(archive.read(f"{folder}data/{key}"), storage) for key, storage in storages.items()}
    return root, arrays


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns what the main pickle builds, and the storages by key."""
    file.seek(0)
    if file.read(2) != b"\x80\x02":
        raise _Unreadable("it is neither a zip archive nor a pickle")
    file.seek(0)
    storages: dict[str, Storage] = {}
    if _build(file, storages) != MAGIC:
        raise _Unreadable("it lacks PyTorch's magic number")
    _build(file, storages)  # the version of the format
    if not _build(file, storages)["little_endian"]:
        raise _Unreadable("its numbers are big-endian")
    root = _build(file, storages)
    arrays = {}
    for key in _build(file, storages):
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.count:
            raise _Unreadable("a storage does not have the length that its pickle states")
        arrays[key] = _array(file.read(storage.count * storage.dtype.itemsize), storage)
    return root, arrays


def _array(content: bytes, storage: Storage) -> np.ndarray:
    if len(content) != storage.count * storage.dtype.itemsize:
        raise _Unreadable("it is truncated")
    return np.frombuffer(content, storage.dtype)


def _build(file: BinaryIO, storages: dict[str, Storage]) -> Any:
    """Returns what one pickle describes, and leaves the file just behind it; adds its storages to `storages`.

    Stack and memo are those of the pickle machine; a mark is a separate object on the stack.
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
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            storages[storage.key] = storage
            stack.append(storage)
        elif name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name in LITERALS:
            stack.append(LITERALS[name](argument))
        elif name in COMMANDS:
            COMMANDS[name](stack)
        elif name != "PROTO":
            raise _Unreadable(f"its pickle asks for {name}, which no file of tensors does")
    raise EOFError


def _storage(description: tuple) -> Storage:
    """Reads ('storage', type, key, place, count), to which the older format adds None if the storage is not a view."""
    kind, storage_type, key, _, count, *view = description
    known = isinstance(storage_type, Name) and storage_type.module == "torch" and storage_type.name in DTYPES
    if kind != "storage" or not known or any(view):
        raise _Unreadable(f"its pickle refers to {str(storage_type)[:60]!r}, which holds neither float32 nor int64")
    if not isinstance(key, str) or not isinstance(count, int) or not 0 <= count <= LIMIT:
        raise _Unreadable("a storage is malformed")
    return Storage(key, DTYPES[storage_type.name], count)


def _call(stack: list[Any]) -> None:
    """Carries out the two calls that a state dict consists of; neither calls anything that the file names."""
    arguments, function = stack.pop(), stack.pop()
    if function == Name("collections", "OrderedDict") and arguments in ((), ([],)):
        stack.append({})
    elif function == Name("torch._utils", "_rebuild_tensor_v2"):
        storage, offset, shape, strides, *_ = arguments
        if not isinstance(storage, Storage):
            raise _Unreadable("a tensor has no storage")
        stack.append(Tensor(storage, offset, tuple(shape), tuple(strides)))
    else:
        shown = ".".join(function) if isinstance(function, Name) else type(function).__name__
        raise _Unreadable(f"its pickle calls {shown[:60]!r}, which no file of tensors does")


class _Mark:
    """Marks where a tuple, or a run of items, begins on the stack."""


def _since_mark(stack: list[Any]) -> list[Any]:
    start = max(i for i, value in enumerate(stack) if isinstance(value, _Mark))
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _tuple(size: int) -> Callable[[list[Any]], None]:
    def pack(stack: list[Any]) -> None:
        items = stack[-size:]
        del stack[-size:]
        stack.append(tuple(items))

    return pack


def _plain(stack: list[Any], kind: type) -> Any:
    """Returns the list or dict on top of the stack, which the next items go into."""
    if type(stack[-1]) is not kind:
        raise TypeError
    return stack[-1]


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _plain(stack, dict)[key] = value


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    _plain(stack, dict).update(zip(items[::2], items[1::2], strict=True))


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    _plain(stack, list).append(value)


def _append_all(stack: list[Any]) -> None:
    items = _since_mark(stack)
    _plain(stack, list).extend(items)


LITERAL_NAMES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")
# Opcodes that push a value.
LITERALS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(LITERAL_NAMES, lambda value: value),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "MARK": lambda _: _Mark(),
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
