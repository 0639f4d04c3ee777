import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from dit_jax.errors import UserError
from dit_jax.evaluation import inception_weights
from dit_jax.evaluation.inception_weights import SHA256, convert, find_weights, load_inception

pytestmark = pytest.mark.medium

FILE = Path("weights.pth")


@pytest.fixture(scope="module")
def tensors():
    """A state dict of PyTorch's names and shapes: 94 convolutions with batch norm, and fc. Random where tests look."""
    rng = np.random.default_rng(0)
    state = {}

    def walk(prefix, tree):
        for name, child in tree.items():
            if "kernel" not in child:
                walk(f"{prefix}{name}.", child)
                continue
            height, width, inputs, outputs = child["kernel"].shape
            unit, shape = prefix + name, (outputs, inputs, height, width)
            random = unit in ("Conv2d_1a_3x3", "Mixed_6b.branch7x7_2")
            state[f"{unit}.conv.weight"] = rng.normal(size=shape).astype(np.float32) if random else np.zeros(shape)
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{unit}.bn.{part}"] = rng.uniform(0.5, 2, outputs).astype(np.float32)
            state[f"{unit}.bn.num_batches_tracked"] = np.array(0)

    tree = dict(inception_weights.parameter_shapes())
    del tree["fc"], tree["fc_bias"]
    walk("", tree)
    state["fc.weight"] = np.arange(1008 * 2048, dtype=np.float32).reshape(1008, 2048)
    state["fc.bias"] = np.arange(1008, dtype=np.float32)
    return state


@pytest.fixture(scope="module")
def converted(tensors):
    return convert(tensors, FILE)["params"]


def test_the_published_file_has_566_tensors(tensors):
    """As others have reported: 94 convolutions with six tensors each (one a count of batches), and two of fc."""
    assert len(tensors) == 566
    assert tensors["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)  # of pytorch-fid's FIDInceptionA
    assert tensors["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)  # of its FIDInceptionC
    assert tensors["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)  # of its FIDInceptionE_2


@pytest.mark.parametrize("unit", ["Conv2d_1a_3x3", "Mixed_6b.branch7x7_2"])
def test_folded_batch_norm_is_convolution_then_batch_norm(tensors, converted, unit):
    """One output pixel: the sum over a window, then gamma (x - mean) / sqrt(variance + 0.001) + beta."""
    params = converted
    for part in unit.split("."):
        params = params[part]
    weight = tensors[f"{unit}.conv.weight"].astype(np.float64)  # [out, in, height, width]
    window = np.random.default_rng(1).normal(size=weight.shape[1:])
    gamma, beta, mean, variance = (
        tensors[f"{unit}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    expected = gamma * ((weight * window).sum((1, 2, 3)) - mean) / np.sqrt(variance + 0.001) + beta
    out = np.einsum("ihw,hwio->o", window, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_fc_is_transposed(converted):
    assert converted["fc"]["kernel"][5, 3] == 3 * 2048 + 5
    assert converted["fc_bias"][7] == 7


def test_other_networks_are_refused(tensors):
    """torchvision's Inception-v3 has 1000 classes and an auxiliary head."""
    bias = {"fc.bias": np.zeros(1000)}
    with pytest.raises(UserError, match=r"fc.bias has shape \(1000,\), expected \(1008,\)"):
        convert(tensors | bias, FILE)
    with pytest.raises(UserError, match=r"also holds AuxLogits.fc.bias"):
        convert(tensors | {"AuxLogits.fc.bias": bias["fc.bias"]}, FILE)
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3.bn.bias is missing"):
        convert({name: x for name, x in tensors.items() if name != "Conv2d_1a_3x3.bn.bias"}, FILE)


def test_the_path_comes_from_the_config_else_from_the_environment(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch(), other.touch()
    assert find_weights(str(one), {"DIT_JAX_INCEPTION": str(other)}) == one
    assert find_weights(None, {"DIT_JAX_INCEPTION": str(other)}) == other
    assert find_weights("", {"DIT_JAX_INCEPTION": str(other)}) == other


@pytest.mark.parametrize("path", [None, "no/such/file"])
def test_without_a_file_the_message_says_what_to_fetch_and_what_else_to_do(path):
    with pytest.raises(UserError) as error:
        find_weights(path, {})
    message = str(error.value)
    assert "\n" not in message
    assert (
        "github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth" in message
    )
    assert "evaluate.inception_path" in message
    assert "DIT_JAX_INCEPTION" in message
    assert "evaluate.features=classifier" in message


def test_the_hash_is_the_one_in_the_files_name():
    assert SHA256.startswith("6726825d")
    assert len(bytes.fromhex(SHA256)) == 32


def test_only_the_published_file_is_read(tmp_path, monkeypatch):
    """The file is whole but holds no tensors, which shows only where its hash is the expected one."""
    content = b"".join(pickle.dumps(x, 2) for x in ("magic number", 1001, {}, {}, []))
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    monkeypatch.setenv("DIT_JAX_INCEPTION", str(path))
    with pytest.raises(UserError, match="is not the published file"):
        load_inception(None)
    monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match="is missing: these are not the weights"):
        load_inception(None)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match="is not the published file"):
        load_inception(None)
