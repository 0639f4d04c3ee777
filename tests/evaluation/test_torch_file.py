"""Files are written here byte by byte, without PyTorch; test_inception_peer.py reads one that PyTorch wrote."""

import os
import pickle
import struct

import numpy as np
import pytest

from dit_jax.evaluation.torch_file import read_tensors

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.num_batches_tracked": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}
STORAGES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def group(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name("collections", "OrderedDict") + b")R"


def tensor(key, array, **changes):
    """Returns the pickled call of _rebuild_tensor_v2; `changes` are offset, shape or strides."""
    strides = [step // array.itemsize for step in array.strides]
    parts = dict(offset=0, shape=array.shape, strides=strides) | changes
    pieces = [text("storage"), name("torch", STORAGES[array.dtype]), text(key), text("cpu"), integer(array.size)]
    storage = group(*pieces, b"N") + b"Q"
    sizes = (group(*map(integer, parts[part])) for part in ("shape", "strides"))
    arguments = group(storage, integer(parts["offset"]), *sizes, b"\x89", ORDERED_DICT)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(tensors, **changes):
    items = [text(n) + tensor(str(i), array, **changes) for i, (n, array) in enumerate(tensors.items())]
    attributes = b"}" + text("_metadata") + ORDERED_DICT + b"s"
    return b"\x80\x02" + ORDERED_DICT + b"(" + b"".join(items) + b"u" + attributes + b"b."


def write(tensors, main=None, **changes):
    """Returns the bytes of a file with the tensors, or with the pickle `main` in place of their description."""
    header = [pickle.dumps(x, 2) for x in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True})]
    body = pickled(tensors, **changes) if main is None else main
    keys = pickle.dumps([str(i) for i in range(len(tensors))], 2)
    data = [struct.pack("<q", array.size) + array.tobytes() for array in tensors.values()]
    return b"".join([*header, body, keys, *data])


def test_reads_names_shapes_types_and_values():
    tensors = read_tensors(write(TENSORS))
    assert list(tensors) == list(TENSORS)
    for key, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[key], array)
        assert tensors[key].dtype == array.dtype


def test_reads_views():
    """Offset 1, shape (2, 2), strides (1, 2) of 0..5: rows 1 3 and 2 4."""
    content = write({"t": np.arange(6, dtype=np.float32)}, offset=1, shape=(2, 2), strides=(1, 2))
    np.testing.assert_array_equal(read_tensors(content)["t"], [[1, 3], [2, 4]])


def test_reads_two_views_of_one_storage():
    """Weights that are tied: both tensors refer to storage 0."""
    array = np.arange(6, dtype=np.float32)
    items = [text(n) + tensor("0", array, offset=i, shape=(2,)) for i, n in enumerate("ab")]
    content = write({"a": array}, main=b"\x80\x02" + ORDERED_DICT + b"(" + b"".join(items) + b"u.")
    tensors = read_tensors(content)
    np.testing.assert_array_equal(tensors["a"], [0, 1])
    np.testing.assert_array_equal(tensors["b"], [1, 2])


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    payload = pickle.dumps({"a": Malicious(marker)}, protocol)
    with pytest.raises(ValueError, match="which no file of tensors does"):
        read_tensors(write({}, main=payload))
    assert not marker.exists()
    pickle.loads(payload)  # it does run when unpickled
    assert marker.exists()


def test_a_malicious_pickle_in_place_of_the_header_is_refused(tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(ValueError, match="the pickle calls 'posix system'"):
        read_tensors(pickle.dumps(Malicious(marker), 2))
    assert not marker.exists()


CALLS = {
    "REDUCE": name("builtins", "eval") + group(text("1")) + b"R",
    "INST": b"(" + text("true") + b"ios\nsystem\n",
    "NEWOBJ": name("os", "system") + group(text("true")) + b"\x81",
    "OBJ": b"(" + name("os", "system") + text("true") + b"o",
    "NEWOBJ_EX": name("os", "system") + group(text("true")) + b"}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93",
}


@pytest.mark.parametrize("call", CALLS)
def test_every_opcode_that_calls_is_refused(call):
    with pytest.raises(ValueError, match="which no file of tensors does"):
        read_tensors(write({}, main=b"\x80\x02}" + text("a") + CALLS[call] + b"s."))
