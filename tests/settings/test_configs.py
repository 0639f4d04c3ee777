"""Configs: each one builds, each key is read, and each mistake is named."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default
from dit_jax.companions.autoencoder import AutoencoderExperiment, autoencoder_config
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment, make_sample
from dit_jax.jobs.train import pace_of
from dit_jax.jobs.train_classifier import ClassifierExperiment, classifier_config
from dit_jax.jobs.training_evaluation import TrainingEvaluation
from dit_jax.models.autoencoder import Codec
from dit_jax.models.dit import PRESETS
from dit_jax.settings import configs
from dit_jax.settings.resolving import resolve
from dit_jax.training.state import ema_rate
from dit_jax.training.step import zero_sums

# cifar10.py:report equals default.py, as a test below shows.
CONFIGS = [
    "configs/default.py",
    "configs/shapes.py",
    "configs/shapes_latents.py",
    "configs/cifar10.py:best",
    "configs/cifar10.py:cpu",
    "configs/image_folder.py",
    "configs/image_folder.py:cpu",
]
# Read by the jobs, not where the models are built; classifier.steps and the like are read by `companion_config`.
READ_BY_JOBS = {"data.resident", "train.keep_checkpoints", "train.max_seconds", "train.init_from"} | {
    f"{section}.{key}"
    for section, keys in {
        "sample": ("batch_size", "seed", "task", "images", "mask", "strength", "denoising", "checkpoint", "weights"),
        "evaluate": ("n", "loss_n", "broken_images", "features", "inception_path"),
        "classifier": ("steps", "batch_size", "learning_rate", "weight_decay"),
        "autoencoder": ("steps", "batch_size", "learning_rate", "sha256", "pretrained"),
    }.items()
    for key in keys
}


OF_A_FOLDER = {f"data.{key}" for key in ("root", "image_size", "skip_broken", "class_names", "content")}


class Recording(ConfigDict):
    """A config that records the name of each leaf that is read."""

    def __init__(self, source, read, prefix=""):
        super().__init__()
        for key in source:
            value = source[key]
            nested = isinstance(value, ConfigDict)
            super().__setitem__(key, Recording(value, read, f"{prefix}{key}.") if nested else value)
        object.__setattr__(self, "_read", read)
        object.__setattr__(self, "_prefix", prefix)

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if "_read" in self.__dict__ and not isinstance(value, ConfigDict):
            self._read.add(self._prefix + key)
        return value

    def __getattr__(self, key):
        value = super().__getattr__(key)
        if not key.startswith("_") and "_read" in self.__dict__ and not isinstance(value, ConfigDict):
            self._read.add(self._prefix + key)
        return value


def build(config):
    """Traces everything that training and sampling compute, without computing it."""
    factor = config.autoencoder.downsample
    encode = lambda _, x: jnp.zeros((len(x), *experiment.x_shape))  # noqa: E731
    views = (2,) if config.data.flip else ()
    decode = lambda _, z: z[..., :3].repeat(factor, axis=1).repeat(factor, axis=2)  # noqa: E731
    experiment = Experiment(config, Codec(encode, decode))
    pace_of(config)
    state = experiment.abstract_state()
    image = (*experiment.info.image_shape,)
    kept = ((*views, *experiment.x_shape), np.float32) if config.model.latents else (image, np.uint8)
    data = jax.ShapeDtypeStruct((512, *kept[0]), kept[1]), jax.ShapeDtypeStruct((512,), np.int32)
    jax.eval_shape(experiment.train_call(), state, zero_sums(), *data, np.int32(1))
    plan, labels = experiment.plan(), experiment.labels()[:8]
    sample = make_sample(experiment, plan, classifier=lambda x_t, t_B: jnp.zeros((len(t_B), 10)))
    evaluation = TrainingEvaluation(experiment, *[None] * 4)  # pyright: ignore[reportArgumentType]
    assert (evaluation.count, evaluation.steps) == (1000, 50)
    jax.eval_shape(lambda params: evaluation.sample(params, jax.random.key(0), labels), state.ema_params)
    images = jax.eval_shape(lambda params: sample(params, jax.random.key(0), labels), state.ema_params)
    assert images.shape == (8, *image)


def build_companion(kind, config):
    """Traces what training the classifier or the autoencoder computes, with its own config."""
    companion = kind(config)
    shape = companion.info.image_shape
    data = jax.ShapeDtypeStruct((512, *shape), np.uint8), jax.ShapeDtypeStruct((512,), np.int32)
    jax.eval_shape(companion.train_call(), companion.abstract_state(), zero_sums(), *data, np.int32(1))


def unread(config):
    read = set()
    build(Recording(config, read))
    build_companion(ClassifierExperiment, Recording(classifier_config(config), read))
    build_companion(AutoencoderExperiment, Recording(autoencoder_config(config), read))
    return {key for key, _ in configs.leaves(config)} - read - READ_BY_JOBS


@pytest.mark.parametrize("spec", [CONFIGS[0], *(pytest.param(spec, marks=pytest.mark.long) for spec in CONFIGS[1:])])
def test_every_config_builds_and_has_every_key_read(spec, tmp_path):
    config = configs.load(spec)
    owned = OF_A_FOLDER
    if config.data.name == "image_folder":
        (tmp_path / "cat").mkdir()
        config.data.root, owned = str(tmp_path), set()
    config = resolve(config)
    assert all(value is not None for _, value in configs.leaves(config))
    config.model.depth = min(config.model.depth, 3)  # blocks differ only in their long skips, which the second half has
    # The preset's name is read by `resolve`, the keys of a folder only for data.name=image_folder.
    assert unread(config) <= {"model.preset"} | owned


@pytest.mark.long
def test_a_key_that_nothing_reads_is_found():
    config = resolve(configs.load("configs/shapes.py"))
    with config.unlocked():
        config.train.forgotten = 3
    assert "train.forgotten" in unread(config)


def test_the_list_of_configs_is_whole():
    assert {f"configs/{p.name}" for p in Path("configs").glob("[!_]*.py")} == {c.partition(":")[0] for c in CONFIGS}
    for spec in ("configs/cifar10.py", "configs/cifar10.py:report"):
        assert configs.load(spec).to_dict() == configs.load("configs/default.py").to_dict()


# The student report's recipe, from its text and its code: 4 GPUs with batches of 64 each, 200 epochs of CIFAR-10's
# 50,000 images without the incomplete last batch.
REPORT = {
    "data.name": "cifar10",
    "model.patch_size": 4,
    "model.width": 384,
    "model.depth": 12,
    "model.num_heads": 8,
    "model.num_kv_heads": 2,
    "model.qk_norm": False,
    "model.mlp_ratio": 4,
    "model.long_skips": False,
    "model.conditioning": "token",
    "model.class_table_width": 128,
    "model.latents": False,
    "diffusion.num_steps": 1000,
    "diffusion.schedule": "linear",
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.zero_terminal_snr": False,
    "diffusion.prediction": "eps",
    "diffusion.timestep_sampling": "uniform",
    "diffusion.stratified_timesteps": False,
    "diffusion.loss_weighting": "uniform",
    "optimizer.learning_rate": 2e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "train.batch_size": 4 * 64,
    "train.steps": 200 * (50_000 // 256),
    "train.dropout": 0.0,
    "sample.sampler": "ddpm",
    "sample.steps": 1000,
    "sample.guidance": 1.0,
    "sample.classifier_scale": 0.0,
    "evaluate.features": "inception",
}


def test_the_reports_recipe_is_the_reports():
    assert REPORT["train.steps"] == 39_000
    recipe = dict(configs.leaves(resolve(configs.load("configs/cifar10.py:report"))))
    assert {key: recipe[key] for key in REPORT} == REPORT


@pytest.mark.parametrize("recipe", ["best", "cpu"])
def test_the_average_of_our_recipes_follows_the_length_of_the_run(recipe):
    """Half of the average's weight is on the last twentieth of the images, at any step (the ramp of Karras et al.)."""
    train = configs.load(f"configs/cifar10.py:{recipe}").train
    for step in (100, 1_000, 10_000):
        decay = 1 - float(ema_rate(np.int32(step), train.batch_size, train.ema_half_life, train.ema_ramp))
        assert decay ** (step / 20) == pytest.approx(0.5, rel=1e-3)


def small():
    config = ConfigDict(
        {"a": {"whole": 3, "real": 0.5, "flag": True, "word": "x", "unset": placeholder(int)}, "top": 1}
    )
    return config.lock()


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a.whole=12", 12),
        ("a.whole=-7", -7),
        ("a.whole=1e6", 1_000_000),
        ("a.whole=1_000", 1000),
        ("a.real=2", 2.0),
        ("a.real=1e-4", 1e-4),
        ("a.flag=false", False),
        ("a.flag=True", True),
        ("a.flag=0", False),
        ("a.word=", ""),
        ("a.word=b=c", "b=c"),
        ("a.word=3", "3"),
        ("a.unset=4", 4),
        ("top=2", 2),
    ],
)
def test_override_takes_the_type_of_the_key(assignment, expected):
    config = small()
    configs.override(config, [assignment])
    value = dict(configs.leaves(config))[assignment.partition("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "assignment", ["a.whole=1.5", "a.whole=many", "a.whole=", "a.whole=nan", "a.whole=inf", "a.whole=True", "a.real=x",
                   "a.flag=2", "a.flag=", "a.unset=None", "a.unset=0.5", "top=[1]"],
)  # fmt: skip
def test_a_wrong_type_is_named(assignment):
    key, _, value = assignment.partition("=")
    with pytest.raises(UserError) as error:
        configs.override(small(), [assignment])
    assert str(error.value).startswith(f"--config.{key}={value} is not of type ")


def test_the_last_override_wins():
    config = small()
    configs.override(config, ["top=2", "top=3"])
    assert config.top == 3


@pytest.mark.parametrize(
    ("key", "near"),
    [("train.batchsize", "train.batch_size"), ("model.widht", "model.width"), ("sede", "seed"),
     ("optimiser.learning_rate", "optimizer.learning_rate"), ("guidance", "sample.guidance")],
)  # fmt: skip
def test_a_misspelt_key_is_told_the_right_one(key, near):
    with pytest.raises(UserError, match=f"--config.{key}: there is no such key; did you mean --config.{near}\\?$"):
        configs.override(default.get_config(), [f"{key}=1"])


@pytest.mark.parametrize("key", ["model", "", "train."])
def test_a_section_is_no_key(key):
    with pytest.raises(UserError, match="there is no such key"):
        configs.override(default.get_config(), [f"{key}=1"])


def test_a_missing_value_is_named():
    with pytest.raises(UserError, match=r"^--config.seed has no value; write --config.seed=VALUE \(int\)$"):
        configs.override(default.get_config(), ["seed"])


def test_json_and_back(tmp_path):
    config = resolve(configs.load("configs/shapes.py"))
    configs.write(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    again = configs.read(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert [type(v) for _, v in configs.leaves(again)] == [type(v) for _, v in configs.leaves(config)]
    assert configs.differences(again, config) == []


BROKEN = ["", "{", '{"seed": 1', "[]", "3", "null", "\x00", "[" * 100_000, '{"train.steps": 1}']


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:15])
def test_a_broken_config_json_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json .*; restore it, or use another workdir$"):
        configs.read(tmp_path)


def test_differences_leave_out_what_a_run_may_change():
    old = resolve(configs.load("configs/shapes.py"))
    new = old.copy_and_resolve_references()
    changes = ["model.depth=2", "train.steps=9", "train.log_every=7", "sample.n=3", "data.data_dir=x", "seed=4"]
    configs.override(new, [*changes, "train.label_dropout=0.2"])
    assert sorted(configs.differences(old, new)) == [
        "model.depth: 4 -> 2",
        "seed: 0 -> 4",
        "train.label_dropout: 0.1 -> 0.2",
    ]


def test_a_run_to_begin_with_is_the_same_by_any_name(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    made = {name: default.get_config() for name in ("other", "other/", str(tmp_path / "other"), "link", "another", "")}
    for name, config in made.items():
        config.train.init_from = name
    same = {name for name, config in made.items() if not configs.differences(made["other"], config)}
    assert same == {"other", "other/", str(tmp_path / "other"), "link"}


def test_a_colon_in_the_name_of_a_config_file_is_no_argument(tmp_path):
    (tmp_path / "c:d").mkdir()
    text = "from configs import default\n\ndef get_config(seed='1'):\n    config = default.get_config()\n"
    for name in ("x.py", "c:d/x.py", "y:2.py"):
        (tmp_path / name).write_text(f"{text}    config.seed = int(seed.replace(':', ''))\n    return config\n")
    given = {"x.py": 1, "x.py:3": 3, "x.py:3:4": 34, "c:d/x.py": 1, "c:d/x.py:5": 5, "y:2.py": 1, "y:2.py:6": 6}
    assert {spec: configs.load(f"{tmp_path}/{spec}").seed for spec in given} == given


def test_the_guides_config_is_one(tmp_path):
    (tmp_path / "mine.py").write_text(Path("docs/model.md").read_text().split("```python\n")[1].split("```")[0])
    for spec, heads in (("mine.py", 1), ("mine.py:2", 2)):
        config = resolve(configs.load(f"{tmp_path}/{spec}"))
        assert (config.model.num_kv_heads, config.model.width, config.diffusion.schedule) == (heads, 384, "rectified")
    (tmp_path / "wrong.py").write_text((tmp_path / "mine.py").read_text().replace("num_kv_heads =", "num_kv_head ="))
    with pytest.raises(UserError, match=r"not exist.*Did you mean .num_kv_heads"):
        configs.load(f"{tmp_path}/wrong.py")


def test_keys_missing_or_unknown():
    config = default.get_config()
    configs.check_keys(config, default.get_config(), "F")
    config.train.stpes = 3
    with pytest.raises(UserError, match=r"^F: there is no key train.stpes; did you mean train.steps\?$"):
        configs.check_keys(config, default.get_config(), "F")
    config = default.get_config()
    del config.train.steps
    with pytest.raises(UserError, match=r"^F: the key train\.steps is missing; add it, such as train\.steps=39000$"):
        configs.check_keys(config, default.get_config(), "F")
    del config.train.log_every  # as from an older version of dit-jax: all are named at once
    told = r"^F: the keys train.log_every, train.steps are missing; add them, such as train.log_every=100, train.steps="
    with pytest.raises(UserError, match=told):
        configs.check_keys(config, default.get_config(), "F")


def test_a_root_that_is_a_loop_of_links_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    config = configs.load("configs/image_folder.py")
    config.data.root = str(tmp_path / "loop")
    with pytest.raises(UserError, match=r"data\.root"):
        resolve(config)


def test_a_null_of_json_can_be_overridden():
    config = ConfigDict(json.loads(json.dumps(default.get_config().to_dict())))
    assert config.model.width is None
    configs.check_keys(config, default.get_config(), "F")
    configs.override(config, ["model.width=64"])
    assert config.model.width == 64
    with pytest.raises(UserError, match=r"model\.depth=x is not of type int"):
        configs.override(config, ["model.depth=x"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_is_unset_and_nothing_else(preset):
    config = default.get_config()
    configs.override(config, [f"model.preset={preset}", "model.depth=1", "model.num_kv_heads=1", "model.patch_size=2"])
    model = resolve(config).model
    assert (model.depth, model.num_kv_heads, model.patch_size) == (1, 1, 2)
    assert {key: model[key] for key in ("width", "num_heads", "conditioning", "positions")} == {
        key: PRESETS[preset][key] for key in ("width", "num_heads", "conditioning", "positions")
    }
    assert config.model.width is None  # a copy was resolved


FILES = {
    "syntax": ("def get_config(:", "SyntaxError"),
    "raises": ("def get_config():\n  raise RuntimeError('a\\nb')", "RuntimeError: a b"),
    "ends Python": ("import sys\nsys.exit()", "SystemExit"),
    "imports": ("import nothing_of_this_name", "nothing_of_this_name"),
    "nothing": ("def get_config():\n  pass", "returned None"),
    "no function": ("x = 3", "defines no get_config"),
    "misspelt": ("from configs import default\ndef get_config():\n  c = default.get_config().lock()\n"
                 "  c.train.stpes = 3\n  return c", "stpes"),
    "wrong type": ("from configs import default\ndef get_config():\n  c = default.get_config()\n"
                   "  c.train.steps = 'many'\n  return c", "steps"),
}  # fmt: skip


def test_a_frozen_config_thaws(tmp_path):
    text = "from configs import default\nfrom ml_collections import FrozenConfigDict\n"
    text += "def get_config():\n  return FrozenConfigDict(default.get_config())\n"
    (tmp_path / "mine.py").write_text(text)
    config = configs.load(str(tmp_path / "mine.py"))
    configs.override(config, ["train.steps=3", "model.preset=demo"])
    assert resolve(config).train.steps == 3


def test_a_home_folder_that_the_shell_left_alone_is_found(tmp_path, monkeypatch):
    """As in --config=~/mine.py."""
    (tmp_path / "mine.py").write_text("from configs import default\ndef get_config(x):\n  return default.get_config()")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configs.load("~/mine.py:x").train.steps == default.get_config().train.steps


@pytest.mark.parametrize("case", FILES)
def test_a_config_file_that_fails_is_one_line(case, tmp_path):
    text, told = FILES[case]
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=told) as error:
        configs.load(str(tmp_path / "mine.py"))
    assert str(error.value).startswith(f"--config={tmp_path}/mine.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("configs/nothing.py", "no file configs/nothing.py"),
        ("configs", "no file configs"),
        ("pyproject.toml", "not a Python file"),
        ("configs/shapes.py:fast", "cannot be loaded"),
        ("configs/cifar10.py:reprot", "use configs/cifar10.py:report"),
    ],
)
def test_a_wrong_config_argument(spec, told):
    with pytest.raises(UserError, match=told):
        configs.load(spec)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.steps", "many", "train.steps='many' is not of type int"),
        ("data.flip", 1, "data.flip=1 is not of type bool"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(key, value, told):
    config = ConfigDict(default.get_config().to_dict())
    section, name = key.split(".")
    with config[section].ignore_type():
        config[section][name] = value
    with pytest.raises(UserError, match=told):
        configs.check_keys(config, default.get_config(), "mine.json")


def test_a_whole_number_becomes_the_float_that_belongs_there():
    config = ConfigDict(default.get_config().to_dict())
    with config.sample.ignore_type():
        config.sample.guidance = 3
    configs.check_keys(config, default.get_config(), "mine.json")
    configs.override(config, ["sample.guidance=2.5"])
    assert config.sample.guidance == 2.5


@pytest.mark.parametrize("recipe", ["report", "best", "cpu"])
def test_a_preset_of_the_command_line_replaces_the_sizes_of_a_recipe(recipe):
    """DiT-B/4 of the paper's table 1 is 768 wide with 12 heads; a size given as well takes precedence, in any order."""
    for words in (["model.preset=DiT-B/4", "model.depth=3"], ["model.depth=3", "model.preset=DiT-B/4"]):
        config = configs.load(f"configs/cifar10.py:{recipe}")
        configs.override(config, words)
        model = resolve(config).model
        assert (model.patch_size, model.width, model.depth, model.num_heads, model.num_kv_heads) == (4, 768, 3, 12, 12)


WORKED_OUT = {
    "c.data.unlock(); c.data.image_size = required_placeholder(int)": "cannot be loaded (RequiredValueError",
    "c.unlock(); c[3] = 4": "cannot be loaded (TypeError",
    "c.unlock(); c.train.loop = c": "cannot be loaded (RecursionError",
    "c.optimizer.unlock(); del c.optimizer['clip_norm']; c.optimizer.clip_norm = 10**400": "is too large for a float",
}


@pytest.mark.parametrize("line", WORKED_OUT)
def test_a_config_that_cannot_be_read_is_one_line(line, tmp_path):
    file = tmp_path / "mine.py"
    head = "from ml_collections.config_dict import required_placeholder\nfrom configs import shapes\n"
    file.write_text(f"{head}def get_config():\n    c = shapes.get_config()\n    {line}\n    return c\n")
    with pytest.raises(UserError) as error:
        configs.check_keys(configs.load(str(file)), default.get_config(), str(file))
    assert WORKED_OUT[line] in str(error.value)


def test_references_that_cannot_be_worked_out_are_one_line():
    config = configs.load("configs/shapes.py")
    t = config.train
    t.steps = t.get_oneway_ref("log_every") * 640 // t.get_oneway_ref("batch_size")
    configs.override(config, ["train.batch_size=0"])
    with pytest.raises(UserError, match="references cannot be resolved"):
        resolve(config)
