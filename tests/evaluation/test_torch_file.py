"""Files are written here byte by byte, without PyTorch; test_inception_peer.py reads some that PyTorch wrote."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.evaluation.torch_file import MAGIC, read_tensors

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


def tensor(key, array, legacy, **changes):
    """Returns the pickled call of _rebuild_tensor_v2; `changes` are offset, shape, strides, storage or count."""
    strides = [step // array.itemsize for step in array.strides]
    parts = (
        dict(offset=0, shape=array.shape, strides=strides, storage=STORAGES[array.dtype], count=array.size) | changes
    )
    pieces = [text("storage"), name("torch", parts["storage"]), text(key), text("cpu"), integer(parts["count"])]
    storage = group(*pieces, b"N" if legacy else b"") + b"Q"
    sizes = (group(*map(integer, parts[part])) for part in ("shape", "strides"))
    arguments = group(storage, integer(parts["offset"]), *sizes, b"\x89", ORDERED_DICT)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(tensors, legacy, **changes):
    items = [text(n) + tensor(str(i), array, legacy, **changes) for i, (n, array) in enumerate(tensors.items())]
    attributes = b"}" + text("_metadata") + ORDERED_DICT + b"s"
    return b"\x80\x02" + ORDERED_DICT + b"(" + b"".join(items) + b"u" + attributes + b"b."


def legacy_file(path, tensors, main=None, **changes):
    header = [pickle.dumps(x, 2) for x in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True})]
    body = pickled(tensors, True, **changes) if main is None else main
    keys = pickle.dumps([str(i) for i in range(len(tensors))], 2)
    data = [struct.pack("<q", array.size) + array.tobytes() for array in tensors.values()]
    path.write_bytes(b"".join([*header, body, keys, *data]))
    return path


def zip_file(path, tensors, main=None, compression=zipfile.ZIP_STORED, **changes):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", pickled(tensors, False, **changes) if main is None else main)
        archive.writestr("weights/byteorder", "little")
        for i, array in enumerate(tensors.values()):
            archive.writestr(f"weights/data/{i}", array.tobytes())
    return path


@pytest.fixture(params=[legacy_file, zip_file])
def write(request, tmp_path):
    return lambda *args, **kwargs: request.param(tmp_path / "weights.pth", *args, **kwargs)


def test_reads_both_forms(write):
    tensors = read_tensors(write(TENSORS))
    assert list(tensors) == list(TENSORS)
    for key, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[key], array)
        assert tensors[key].dtype == array.dtype


def test_reads_views(write):
    """Offset 1, shape (2, 2), strides (1, 2) of 0..5: rows 1 3 and 2 4."""
    path = write({"t": np.arange(6, dtype=np.float32)}, offset=1, shape=(2, 2), strides=(1, 2))
    np.testing.assert_array_equal(read_tensors(path)["t"], [[1, 3], [2, 4]])


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(write, tmp_path, protocol):
    marker = tmp_path / "marker"
    payload = pickle.dumps({"a": Malicious(marker)}, protocol)
    with pytest.raises(UserError, match="refused"):
        read_tensors(write({}, main=payload))
    assert not marker.exists()
    pickle.loads(payload)  # it does run when unpickled
    assert marker.exists()


def test_a_malicious_pickle_in_place_of_the_header_is_refused(tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Malicious(marker), 2))
    with pytest.raises(UserError, match=r"pickle calls 'posix\.system'"):
        read_tensors(path)
    assert not marker.exists()


CALLS = {
    "another function": name("builtins", "eval") + group(text("1")) + b"R",
    "a forged name": group(text("torch._utils"), text("_rebuild_tensor_v2")) + b")R",
    "INST": b"(" + text("true") + b"ios\nsystem\n",
    "NEWOBJ": name("os", "system") + group(text("true")) + b"\x81",
    "OBJ": b"(" + name("os", "system") + text("true") + b"o",
    "EXT1": b"\x82\x01",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93",
    "a class for a dict": name("collections", "OrderedDict")
    + group(b"]" + group(integer(1), integer(2)) + b"a")
    + b"R",
    "a persistent module": group(text("module"), b"N", text("a"), text("b")) + b"Q",
    "a storage of doubles": tensor("0", np.zeros(1, np.float32), False, storage="DoubleStorage"),
    "an int for a tensor": integer(3),
    "nothing": b"",
    "an unknown memo": b"h\x09",
    "an unhashable key": b"]" + integer(1) + b"s",
}


@pytest.mark.parametrize("call", CALLS)
def test_other_programs_are_refused(write, call):
    with pytest.raises(UserError, match="refused as a file of PyTorch weights") as error:
        read_tensors(write({}, main=b"\x80\x02}" + text("a") + CALLS[call] + b"s."))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(offset=1),
        dict(offset=-1),
        dict(shape=(3, 3), strides=(0, 1)),
        dict(shape=(2, 3), strides=(4, 1)),
        dict(shape=(-2, -3)),
        dict(shape=(6,)),
        dict(count=5),
        dict(count=7),
        dict(count=-1),
        dict(count=2**31 - 1),
        dict(storage="LongStorage"),
    ],
    ids=str,
)
def test_tensors_outside_their_data_are_refused(write, changes):
    path = write({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, **changes)
    with pytest.raises(UserError, match="refused as a file of PyTorch weights"):
        read_tensors(path)


def test_truncated_files_are_refused(write):
    path = write(TENSORS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="refused as a file of PyTorch weights"):
            read_tensors(path)


def test_deep_nesting_is_refused(write):
    with pytest.raises(UserError, match="refused"):
        read_tensors(write({}, main=b"\x80\x02})" + b"\x85" * 100_000 + integer(1) + b"s."))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="neither a zip archive nor a pickle"):
        read_tensors(path)
    with pytest.raises(UserError, match="its archive is compressed"):
        read_tensors(zip_file(path, TENSORS, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="cannot read"):
        read_tensors(tmp_path / "none")


def test_big_endian_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    header = [pickle.dumps(x, 2) for x in (MAGIC, 1001, {"little_endian": False})]
    path.write_bytes(b"".join(header))
    with pytest.raises(UserError, match="big-endian"):
        read_tensors(path)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/byteorder", "big")
    path.write_bytes(content.getvalue())
    with pytest.raises(UserError, match="big-endian"):
        read_tensors(path)
