"""An experiment and a loaded run: each setting takes effect; image i of a seed is the same in any batch and mesh."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dit_jax
from configs import default
from dit_jax.errors import UserError
from dit_jax.experiment import Experiment, make_sample
from dit_jax.jobs.sample import Task, draw_all
from dit_jax.loading import Run, load
from dit_jax.settings import configs
from dit_jax.training import loop
from dit_jax.training.checkpoint import Checkpointer
from tests import tiny
from tests.training.test_optimizer import numpy_adamw


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of four steps on one device."""
    return tiny.trained(tmp_path_factory.mktemp("experiment"))


def draw(workdir, monkeypatch, devices=1, n=7, batch_size=4, **more):
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, devices)
    own = {"sample__n": n, "sample__batch_size": batch_size, "sample__seed": 3}
    run = load(workdir, tiny.config(**own, train__steps=4, **more))
    return draw_all(run, Task(run.experiment.labels(), run.sample))


@pytest.fixture(scope="module")
def reference(workdir):
    with pytest.MonkeyPatch.context() as patch:
        return draw(workdir, patch)


@pytest.mark.parametrize(("devices", "n", "batch_size"), [(1, 3, 3), (1, 7, 2), (8, 7, 7)])
def test_an_image_is_the_same_in_any_batch_and_on_any_mesh(devices, n, batch_size, workdir, reference, monkeypatch):
    images = draw(workdir, monkeypatch, devices, n, batch_size)
    assert images.shape == (n, 8, 8, 3)
    assert np.abs(images.astype(int) - reference[:n].astype(int)).max() <= 1
    assert len({image.tobytes() for image in reference}) == 7  # the images differ from one another


def weights(experiment):
    """Returns parameters as large as those of a long-trained model: N(0, 1 / fan-in)."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(experiment.init_params)
    draw = lambda leaf: rng.normal(scale=leaf.shape[0] ** -0.5, size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.mark.medium
def test_one_noise_and_one_label_are_one_image_alone_or_among_64_and_on_1_2_4_or_8_devices(monkeypatch):
    """Bitwise on one device, whatever `sample.batch_size` is; to 1e-5 across numbers of devices."""
    tiny.install(monkeypatch)
    drawn = {}
    for devices in (1, 2, 4, 8):
        tiny.on_devices(monkeypatch, devices)
        for batch_size in (4, 64) if devices == 1 else (64,):
            experiment = tiny.experiment(sample__batch_size=batch_size, sample__guidance=2.0, model__patch_size=2)
            sample, params, key = experiment.sampler(), weights(experiment), jax.random.key(3)
            many = np.asarray(sample(params, key, np.arange(64) % 3))
            drawn[devices, batch_size] = many
            for at in (0, 17, 63) if devices == 1 else ():
                alone = np.asarray(sample(params, key, [at % 3], first=at))
                np.testing.assert_array_equal(alone[0], many[at])
    assert many.dtype == np.float32
    assert len(np.unique(many.reshape(64, -1), axis=0)) == 64
    for other in drawn.values():
        np.testing.assert_allclose(other, drawn[1, 4], atol=1e-5)
    np.testing.assert_array_equal(drawn[1, 4], drawn[1, 64])


@pytest.mark.medium
def test_a_sampler_can_be_traced(monkeypatch):
    """Inside another jit the labels are abstract; the images are the same."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 2)
    experiment = tiny.experiment()
    sample, params, key = experiment.sampler(), weights(experiment), jax.random.key(3)
    labels = np.asarray([2, 0, 1])
    np.testing.assert_allclose(jax.jit(sample)(params, key, labels, 5), sample(params, key, labels, 5), atol=1e-5)
    with pytest.raises(UserError, match="labels=\\[\\]: give at least one; the classes are 0 "):
        sample(params, key, [])


def test_many_images_are_batches_of_one_size_and_one_compile(monkeypatch):
    """Ten images in batches of four: the last batch is padded, so it needs no new trace."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    experiment, traced, sizes = tiny.experiment(sample__n=10, sample__batch_size=4), [], []
    apply = type(experiment).apply
    monkeypatch.setattr(type(experiment), "apply", lambda *args: traced.append(1) or apply(*args))
    params, sample = weights(experiment), experiment.sampler()
    spy = lambda *args: sizes.append((len(args[2]), len(traced))) or sample(*args)  # noqa: E731
    run = Run(experiment, 4, params, spy, params)
    assert draw_all(run, Task(experiment.labels(), spy)).shape == (10, 8, 8, 3)
    assert [size for size, _ in sizes] == [4, 4, 4]
    assert sizes[0][1] == 0 < sizes[1][1] == sizes[2][1] == len(traced)
    sample(params, jax.random.key(9), [2, 2, 1], first=50)  # nor does another number of images in as many passes
    assert len(traced) == sizes[1][1]


@pytest.mark.medium
def test_a_few_images_are_not_filled_up_to_a_batch_where_a_pass_is_a_whole_one(monkeypatch):
    """As on GPUs: `sample.batch_size` may be a thousand when only three images, or a training run's grid, are drawn."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 2)
    asked = []
    elsewhere = lambda batch_size, mesh: asked.append(batch_size) or -(-batch_size // mesh.size)  # noqa: E731
    monkeypatch.setattr("dit_jax.experiment.pass_size", elsewhere)
    experiment = tiny.experiment(sample__batch_size=6)
    sample, params, key = experiment.sampler(), weights(experiment), jax.random.key(3)
    many = sample(params, key, np.arange(7) % 3)
    few = sample(params, key, [0, 1, 2])
    for n in (4, 5, 1):
        sample(params, key, [0] * n)
    assert asked == [6, 4, 4, 6, 1]  # rounded up to powers of two, so that few sizes are compiled
    np.testing.assert_allclose(few, many[:3], atol=1e-5)


@pytest.mark.medium
def test_outside_the_guidance_interval_images_are_unguided(workdir, monkeypatch):
    """With T = 20, no t / T exceeds 0.95: guidance from 0.97 on has no effect, and over the whole range it has one."""
    none, whole, outside = (
        draw(workdir, monkeypatch, devices, sample__guidance=scale, sample__guidance_from=start)
        for devices, scale, start in ((1, 1.0, 0.0), (1, 5.0, 0.0), (8, 5.0, 0.97))
    )
    assert np.abs(outside.astype(int) - none.astype(int)).max() <= 1
    assert np.abs(whole.astype(int) - none.astype(int)).max() > 1


@pytest.fixture
def images_of(monkeypatch):
    """Returns images_of(labels, classifier, **config): float images of a network whose eps is a tenth of the label."""
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    tenth = lambda self, params, x_t, t_B, labels_B: 0 * x_t + labels_B[:, None, None, None] / 10  # noqa: E731
    monkeypatch.setattr(Experiment, "apply", tenth)

    def draw(labels, classifier=None, **more):
        experiment = tiny.experiment(**{"sample__clip_x_0": False} | more)
        sample = make_sample(experiment, experiment.plan(), classifier=classifier)
        return np.asarray(sample({}, jax.random.key(3), labels))

    return draw


def test_guidance_0_draws_what_the_label_for_no_class_does(images_of):
    """That label is 3 for a model of three classes (models/dit.py)."""
    of_no_class = images_of([3, 3])
    np.testing.assert_allclose(images_of([0, 1], sample__guidance=0.0), of_no_class, atol=1e-5)
    assert np.abs(images_of([2, 2]) - of_no_class).max() > 1e-2


def test_a_classifier_guides_only_within_the_guidance_interval(images_of):
    """With T = 20, no t / T exceeds 0.95, so guidance from 0.97 on has no effect."""
    logits = lambda x_t, t_B: x_t.mean((1, 2))  # noqa: E731
    plain = images_of([0, 1])
    always, never = (
        images_of([0, 1], logits, sample__classifier_scale=50.0, sample__guidance_from=start) for start in (0.0, 0.97)
    )
    np.testing.assert_allclose(never, plain, atol=1e-5)
    assert np.abs(always - plain).max() > 1e-2


def test_x_0_is_clipped_only_if_the_config_says_so(images_of):
    """The last step of ddpm gives the predicted x_0 itself, and this network leaves nearly all noise in it."""
    free, clipped = (np.abs(images_of([0, 1], sample__clip_x_0=clip)).max() for clip in (False, True))
    assert free > 1.1
    assert clipped <= 1 + 1e-5


def test_no_class_is_refused_if_the_model_was_not_trained_on_it(monkeypatch):
    tiny.install(monkeypatch)
    sample = tiny.experiment(train__label_dropout=0.0).sampler()
    with pytest.raises(UserError, match="label 3 "):
        sample(None, jax.random.key(3), [0, 3])


def test_the_initial_weights_and_the_draws_of_training_have_different_keys(monkeypatch):
    """Neither is the seed's own key, as both are folded into and split further."""
    tiny.install(monkeypatch)
    keys = [jax.random.key(7), *tiny.experiment(seed=7).keys]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_the_plan_is_the_one_asked_for(monkeypatch):
    tiny.install(monkeypatch)
    monkeypatch.setattr("dit_jax.experiment.make_sample", lambda experiment, plan, *rest: plan)
    plan = tiny.experiment(sample__sampler="ddim", sample__eta=0.5, sample__spacing="trailing").sampler()
    assert plan.t.tolist() == [19, 12, 6]  # 20, 13.33 and 6.67, rounded, minus one
    assert (plan.noise[:-1] > 0).all()
    assert plan.x_0_prev.tolist() == [0, 0, 0]
    plan = tiny.experiment(sample__sampler="dpmpp_2m", diffusion__schedule="cosine").sampler()
    assert plan.t.tolist() == [19, 10, 0]
    assert plan.x_0_prev[1] < 0
    objective = tiny.experiment(diffusion__loss_weighting="min_snr", diffusion__stratified_timesteps=True).objective
    assert objective.stratified_timesteps
    snr = (objective.schedule.alpha / objective.schedule.sigma) ** 2
    np.testing.assert_allclose(objective.loss_weights, np.minimum(snr, 5) / snr)  # Hang et al. 2023, of an eps loss


# No two numbers in a table are equal, and no value is the default.
MODEL = {"patch_size": 2, "width": 48, "depth": 5, "num_heads": 12, "num_kv_heads": 6, "qk_norm": True, "mlp_ratio": 7,
         "long_skips": True, "conditioning": "adaln_zero", "class_table_width": 10, "positions": "grid",
         "dtype": "bfloat16", "remat": True}  # fmt: skip
OBJECTIVE = {"prediction": "v", "timestep_sampling": "logit_normal", "logit_mean": 0.3, "logit_std": 0.7,
             "stratified_timesteps": True}  # fmt: skip
TRAIN = {"label_dropout": 0.15, "batch_size": 16, "microbatches": 4, "steps_per_call": 5, "ema_half_life": 77.0,
         "ema_ramp": 0.02}  # fmt: skip


@pytest.fixture
def unlike(monkeypatch):
    """An experiment whose settings can each be recognised by their value."""
    tiny.install(monkeypatch)
    settings = {f"model__{key}": value for key, value in MODEL.items()}
    settings |= {f"diffusion__{key}": value for key, value in OBJECTIVE.items()}
    settings |= {f"train__{key}": value for key, value in TRAIN.items()}
    more = dict(data__flip=False, train__dropout=0.35, train__steps=6, diffusion__zero_terminal_snr=True,
                diffusion__num_steps=25, diffusion__beta_start=0.01, diffusion__beta_end=0.3,
                diffusion__loss_weighting="min_snr", diffusion__min_snr_gamma=3.0, optimizer__learning_rate=0.04,
                optimizer__b1=0.8, optimizer__b2=0.95, optimizer__weight_decay=0.1, optimizer__warmup_steps=2,
                optimizer__schedule="cosine", optimizer__clip_norm=0.5)  # fmt: skip
    return tiny.experiment(**settings, **more)


def test_every_setting_of_the_network_and_of_a_step_goes_where_it_belongs(unlike):
    expected = MODEL | {"num_classes": 3, "dropout": 0.35, "dtype": jnp.bfloat16}
    assert {name: getattr(unlike.model, name) for name in expected} == expected
    expected = OBJECTIVE | {"flip": False, "null_class": 3, "label_dropout": 0.15, "batch_size": 16}
    assert {name: getattr(unlike.objective, name) for name in expected} == expected
    assert dataclasses.asdict(unlike.step_settings) | {"label_dropout": 0.15} == TRAIN
    # Lin et al. 2023, algorithm 1, on DDPM's alpha; Hang et al. 2023, section 3.4, for v.
    alpha = np.sqrt(np.cumprod(1 - np.linspace(0.01, 0.3, 25)))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    snr = alpha**2 / (1 - alpha**2)
    np.testing.assert_allclose(unlike.objective.schedule, [alpha, np.sqrt(1 - alpha**2)], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(unlike.objective.loss_weights, np.minimum(snr, 3) / (snr + 1), rtol=1e-9, atol=1e-12)


def test_every_setting_of_the_optimizer_goes_where_it_belongs(unlike):
    """Two steps of warm-up to 0.04, then (1 + cos(pi k / 4)) / 2 of it: six steps of the paper's algorithm."""
    rates = 0.04 * np.array([0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    np.testing.assert_allclose(unlike.learning_rate(np.arange(6)), rates, rtol=1e-5)
    start, *gradients = np.random.default_rng(0).normal(size=(7, 3, 4))
    params, update = {"kernel": start.astype(np.float32)}, jax.jit(unlike.optimizer.update)
    state = unlike.optimizer.init(params)
    for gradient in gradients:
        updates, state = update({"kernel": gradient.astype(np.float32)}, state, params)
        params = {"kernel": params["kernel"] + np.asarray(updates["kernel"])}
    expected = numpy_adamw(start, gradients, rates.__getitem__, 0.8, 0.95, 0.1, 0.5)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_up_to_a_gib_of_decoded_images_stays_on_the_devices(monkeypatch):
    """As docs/data.md says: 2^30 / (64 x 64 x 3) = 87,381.3."""
    tiny.install(monkeypatch)
    for name in ("Resident", "Stream"):
        monkeypatch.setattr(f"dit_jax.experiment.{name}", lambda *_, name=name: name)
    found = []
    for count, resident in ((87_381, "auto"), (87_382, "auto"), (87_382, "true"), (40, "false")):
        records = dataclasses.replace(tiny.records(), count=count, image_shape=(64, 64, 3))
        found.append(tiny.experiment(data__resident=resident).feed(records))
    assert found == ["Resident", "Stream", "Resident", "Stream"]


def test_the_importable_twin(workdir, reference, monkeypatch, caplog):
    tiny.install(monkeypatch)
    tiny.on_devices(monkeypatch, 1)
    level = logging.getLogger("absl").level
    run = dit_jax.load(str(workdir))
    assert repr(run) == f"Run(step={run.step}, classifier_sha256=None)"  # a notebook shows it
    assert not caplog.records  # Orbax's warning that it is read-only is hidden
    assert logging.getLogger("absl").level == level
    assert run.step == 4
    images = np.asarray(run.sample(run.ema_params, jax.random.key(3), [0, 1, 2, 0]))
    assert images.dtype == np.float32
    assert np.abs(np.clip(np.round((images + 1) * 127.5), 0, 255) - reference[:4]).max() <= 1
    later = np.asarray(run.sample(run.ema_params, jax.random.key(3), np.array([0, 0, 1, 2]), first=3))
    np.testing.assert_allclose(later[0], images[3], atol=1e-5)
    with pytest.raises(UserError, match="label 4 is out of range; the classes are 0 red"):
        run.sample(run.ema_params, jax.random.key(3), [0, 4])
    for labels in ([0.5, 1.0], [[0, 1]], 1, ["red"]):
        with pytest.raises(UserError, match="give a list of numbers; the classes are 0 red"):
            run.sample(run.ema_params, jax.random.key(3), labels)
    for first in (0.5, -1):
        with pytest.raises(UserError, match=f"first={first}: give"):
            run.sample(run.ema_params, jax.random.key(3), [0], first)
    with pytest.raises(UserError, match=f"label {2**32 + 1} is out of range"):
        run.sample(run.ema_params, jax.random.key(3), np.array([2**32 + 1]))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        dit_jax.lod  # noqa: B018


def test_the_importable_twin_takes_the_overrides_of_the_command_line(workdir, monkeypatch):
    tiny.install(monkeypatch)
    run = load(workdir, overrides=["sample.sampler=ddim", "sample.steps=2", "model.dtype=bfloat16"])
    assert run.experiment.config.model.dtype == "bfloat16"
    expected = run.experiment.sampler("ddim", 2)(run.ema_params, jax.random.key(3), [0, 1])
    np.testing.assert_array_equal(run.sample(run.ema_params, jax.random.key(3), [0, 1]), expected)
    for wrong, told in (("sample.stps=2", "did you mean"), ("model.width=8", "run with another config"),
                        ("sample.steps=21", "sample.steps=21")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            load(workdir, overrides=[wrong])
    for wrong in ("sample.steps=2", {"sample.steps": 2}):
        with pytest.raises(UserError, match=r"overrides=.*sample.steps.*: give a list, such as"):
            load(workdir, overrides=wrong)


def test_a_config_as_its_file_gives_it_is_filled_in(workdir, monkeypatch):
    tiny.install(monkeypatch)
    bare = default.get_config()
    configs.override(bare, tiny.assignments(train__steps=4))
    assert bare.data.image_size is None
    run = load(workdir, bare)
    assert bare.data.image_size is None
    drawn = run.sample(run.ema_params, jax.random.key(3), [0, 1])
    known = load(workdir, tiny.config(train__steps=4))
    np.testing.assert_array_equal(drawn, known.sample(known.ema_params, jax.random.key(3), [0, 1]))


def test_the_ema_weights_are_not_the_parameters(workdir, monkeypatch):
    tiny.install(monkeypatch)
    run = load(workdir)
    with Checkpointer(workdir, keep=3, read_only=True) as checkpointer:
        state = checkpointer.restore(run.experiment.abstract_state())
    assert state is not None
    jax.tree.map(np.testing.assert_array_equal, run.ema_params, state.ema_params)
    apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), run.ema_params, state.params)
    assert max(jax.tree.leaves(apart)) > 1e-5


def test_the_guides_lines_read_a_checkpoint(workdir, monkeypatch):
    code = Path("docs/workdir.md").read_text().split("```python\n")[1].split("```")[0]
    read = {}
    exec(code.replace("/absolute/path/to/runs/shapes/checkpoints/10000", str(workdir / "checkpoints" / "4")), read)
    tiny.install(monkeypatch)
    assert int(read["state"]["step"]) == 4
    jax.tree.map(np.testing.assert_array_equal, read["state"]["ema_params"], load(workdir).ema_params)


def test_the_guides_own_sampler_draws_what_ddim_draws(workdir, monkeypatch):
    code = Path("docs/math.md").read_text().split("```python\n")[1].split("```")[0]
    tiny.install(monkeypatch)
    done = {}
    exec(code.replace("runs/cifar10", str(workdir)).replace("[3, 3, 5]", "[2, 2, 1]"), done)
    expected = done["run"].sample(done["run"].weights, jax.random.key(3), [2, 2, 1])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(done["images"], expected, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("conditioning", ["token", "adaln_zero"])
def test_eight_devices_train_the_dit_as_one_does(conditioning, monkeypatch):
    """Plain SGD, which shows a gradient of the wrong size that AdamW would hide."""
    tiny.install(monkeypatch)
    params = []
    for devices in (1, 8):
        tiny.on_devices(monkeypatch, devices)
        experiment = tiny.experiment(model__conditioning=conditioning, train__steps_per_call=3)
        call, state, images, labels = tiny.start(experiment, optax.sgd(0.5))
        fresh = jax.device_get(state.params)
        state, sums, _ = call(state, loop.zero_sums(), images, labels, np.int32(3))
        params.append((jax.device_get(state.params), float(sums["loss"])))
    (one, loss_of_one), (eight, loss_of_eight) = params
    assert loss_of_eight == pytest.approx(loss_of_one, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), one, eight)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, fresh)
    assert max(jax.tree.leaves(moved)) > 1e-2


def test_an_unknown_workdir(tmp_path):
    with pytest.raises(UserError, match="no such folder; train first"):
        load(tmp_path / "nothing")
