"""Weights of an autoencoder that diffusers saved: by name and by layout, and what is refused in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dit_jax.companions.autoencoder import AutoencoderExperiment, autoencoder_config
from dit_jax.companions.pretrained import load_autoencoder
from dit_jax.errors import UserError
from dit_jax.jobs.train import train
from dit_jax.loading import load
from tests import tiny
from tests.jobs.test_latents import LATENTS

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    tiny.install(monkeypatch)


def shapes():
    experiment = AutoencoderExperiment(autoencoder_config(tiny.config(**LATENTS)))
    return jax.eval_shape(experiment.init_params)


def theirs():
    """Returns random tensors by the names and shapes of AutoencoderKL, for stages of 4 and 8 channels, a block each."""
    shapes = {"quant_conv": (4, 4, 1), "post_quant_conv": (2, 2, 1)}

    def block(name, inputs, outputs):
        shapes.update({f"{name}.conv1": (outputs, inputs, 3), f"{name}.conv2": (outputs, outputs, 3)})
        shapes.update({f"{name}.norm1": (inputs,), f"{name}.norm2": (outputs,)})
        if inputs != outputs:
            shapes[f"{name}.conv_shortcut"] = (outputs, inputs, 1)

    for side, ends in (("encoder", ((4, 3), (4, 8))), ("decoder", ((8, 2), (3, 4)))):
        shapes[f"{side}.conv_in"], shapes[f"{side}.conv_out"] = (*ends[0], 3), (*ends[1], 3)
        shapes[f"{side}.conv_norm_out"] = (ends[1][1],)
        for i in (0, 1):
            block(f"{side}.mid_block.resnets.{i}", 8, 8)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{side}.mid_block.attentions.0.{name}"] = (8, 8)
        shapes[f"{side}.mid_block.attentions.0.group_norm"] = (8,)
    block("encoder.down_blocks.0.resnets.0", 4, 4)
    shapes["encoder.down_blocks.0.downsamplers.0.conv"] = (4, 4, 3)
    block("encoder.down_blocks.1.resnets.0", 4, 8)
    for i in (0, 1):
        block(f"decoder.up_blocks.0.resnets.{i}", 8, 8)
    shapes["decoder.up_blocks.0.upsamplers.0.conv"] = (8, 8, 3)
    block("decoder.up_blocks.1.resnets.0", 8, 4)
    block("decoder.up_blocks.1.resnets.1", 4, 4)
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        full = (*shape, shape[2]) if len(shape) == 3 else shape
        tensors[f"{name}.weight"] = rng.normal(size=full).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=full[0]).astype(np.float32)
    return tensors


def saved(path, tensors):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def test_every_weight_is_where_it_belongs(tmp_path):
    tensors = theirs()
    params = load_autoencoder(saved(tmp_path / "a.safetensors", tensors), shapes())["params"]
    kernel = tensors["encoder.down_blocks.1.resnets.0.conv1.weight"]  # [F, C, 3, 3]
    ours = params["encoder"]["down_1_0"]["conv1"]["Dense_0"]["kernel"].reshape(3, 3, 4, 8)
    np.testing.assert_array_equal(ours[2, 1, 3, 5], kernel[5, 3, 2, 1])
    attention = params["decoder"]["attention"]
    name = "decoder.mid_block.attentions.0"
    np.testing.assert_array_equal(attention["to_out"]["kernel"], tensors[f"{name}.to_out.0.weight"].T)
    np.testing.assert_array_equal(attention["to_k"]["bias"], tensors[f"{name}.to_k.bias"])
    np.testing.assert_array_equal(params["quant_conv"]["kernel"], tensors["quant_conv.weight"][:, :, 0, 0].T)
    norm = params["decoder"]["up_1_0"]["norm1"]
    np.testing.assert_array_equal(norm["scale"], tensors["decoder.up_blocks.1.resnets.0.norm1.weight"])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_and_old_names_are_read(dtype, tmp_path):
    tensors = {name: array.astype(dtype) for name, array in theirs().items()}
    new = load_autoencoder(saved(tmp_path / "new.safetensors", tensors), shapes())
    for now, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {name.replace(now, before): array for name, array in tensors.items()}
    jax.tree.map(
        np.testing.assert_array_equal, load_autoencoder(saved(tmp_path / "o.safetensors", tensors), shapes()), new
    )


def test_a_workdir_that_orbax_cannot_name_gets_no_autoencoder(tmp_path, capfd):
    folder = tmp_path / "lr[1]"
    done = tiny.run_main(capfd, *tiny.flags(), "--mode=train_autoencoder", f"--workdir={folder}",
                         "--config.data.name=shapes", "--config.autoencoder.pretrained=x")  # fmt: skip
    assert done.code == 2
    assert "because of the [ in it; use another folder" in done.err[-1]
    assert not folder.exists()


def drop(tensors):
    del tensors["encoder.conv_in.bias"]


def misshape(tensors):
    tensors["quant_conv.weight"] = np.zeros((8, 8, 1, 1), np.float32)


def empty(tensors):
    tensors["encoder.conv_in.weight"] = np.zeros((0, 3, 3, 3), np.float32)


def turn(tensors):
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"].reshape(4, 3, 9, 1)


def spoil(tensors):
    tensors["encoder.conv_in.bias"][1] = np.nan


def count(tensors):
    tensors["encoder.conv_in.bias"] = np.arange(4)


def decide(tensors):
    tensors["encoder.conv_in.bias"] = np.ones(4, bool)


def add(tensors):
    tensors["logvar"] = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "encoder.conv_in.bias is missing; set autoencoder.downsample"),
        (misshape, r"quant_conv.weight does not fit with its shape \[8, 8, 1, 1\]"),
        (empty, r"encoder.conv_in.weight does not fit with its shape \[0, 3, 3, 3\]"),
        (turn, r"encoder.conv_in.weight does not fit with its shape \[4, 3, 9, 1\]"),
        (spoil, "encoder.conv_in.bias has values that are not finite in float32; download it again"),
        (count, r"has an unsupported number type \(encoder.conv_in.bias: int64\); save it as float32"),
        (decide, r"has an unsupported number type \(encoder.conv_in.bias: bool\); save it as float32"),
        (add, "also has logvar: it is another kind of autoencoder"),
    ],
)
def test_what_is_no_such_autoencoder_is_refused(change, words, tmp_path):
    tensors = theirs()
    change(tensors)
    with pytest.raises(UserError, match=words):
        load_autoencoder(saved(tmp_path / "a.safetensors", tensors), shapes())


def test_a_config_of_an_autoencoder_that_says_nothing_of_files_is_refused_as_another(tmp_path, capfd):
    """It is from an older version, or was edited: one line, as for any other difference."""
    folder = tmp_path / "w" / "autoencoder"
    (folder / "checkpoints" / "0").mkdir(parents=True)
    sections = {key: {} for key in ("data", "model", "diffusion", "optimizer", "train", "sample")}
    (folder / "config.json").write_text(json.dumps(sections | {"autoencoder": {"steps": 5}}))
    refused = tiny.run_main(capfd, f"--workdir={tmp_path / 'w'}", "--mode=train_autoencoder", *tiny.flags())
    assert refused.code == 2
    assert "holds a run with another config" in refused.err[0]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}"])
def test_a_damaged_file_is_one_line(damage, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(damage)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_autoencoder(tmp_path / "a.safetensors", shapes())
    with pytest.raises(UserError, match="there is no such file"):
        load_autoencoder(tmp_path / "b.safetensors", shapes())


@pytest.mark.long
def test_a_run_on_latents_of_a_pretrained_autoencoder(tmp_path, capfd):
    tensors = {name: 0.2 * array for name, array in theirs().items()}
    file, flags = saved(tmp_path / "a.safetensors", tensors), tiny.flags(**LATENTS)
    put = ["--mode=train_autoencoder", "--workdir", tmp_path / "w", *flags]
    (tmp_path / "w/autoencoder/checkpoints/0.orbax-checkpoint-tmp").mkdir(parents=True)  # as a kill leaves it
    assert tiny.run_main(capfd, *put, f"--config.autoencoder.pretrained={file}").code == 0
    about = json.loads((tmp_path / "w/autoencoder/latents.json").read_text())
    assert about["step"] == 0
    refused = tiny.run_main(capfd, *put)
    assert refused.code == 2
    words = f"autoencoder.pretrained='': {tmp_path / 'w/autoencoder'} has the weights of {file}; use that file, or"
    assert words in refused.err[0]
    assert train(tiny.config(**LATENTS), tmp_path / "w", None) == 0
    codec = load(tmp_path / "w").experiment.codec
    np.testing.assert_array_equal(codec.weights["params"]["params"]["quant_conv"]["bias"], tensors["quant_conv.bias"])
    before = tiny.snapshot(tmp_path / "w/autoencoder/checkpoints")
    assert tiny.run_main(capfd, *put, f"--config.autoencoder.pretrained={file}").code == 0
    assert tiny.snapshot(tmp_path / "w/autoencoder/checkpoints") == before
    other = saved(tmp_path / "b.safetensors", theirs())
    refused = tiny.run_main(capfd, *put, f"--config.autoencoder.pretrained={other}")
    assert refused.code == 2
    assert "holds another autoencoder; use another workdir" in refused.err[0]
