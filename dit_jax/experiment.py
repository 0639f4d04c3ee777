"""The one place that unpacks a resolved config: it builds model, schedule, data, optimizer and sampler.

config -> resolve (settings/resolving.py) -> Experiment -> jobs/
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dit_jax.data import datasets
from dit_jax.diffusion import guidance, sampling, tasks
from dit_jax.diffusion.objective import loss_weights
from dit_jax.diffusion.schedule import Schedule, make_schedule
from dit_jax.diffusion.spacing import SPACINGS
from dit_jax.models.autoencoder import PIXELS, Codec
from dit_jax.models.dit import DiT, apply_shares
from dit_jax.settings import checks
from dit_jax.settings.checks import require
from dit_jax.settings.labels import check_first, check_labels, parse_labels
from dit_jax.settings.resolving import folder_of
from dit_jax.training import layout, optimizer, sharding
from dit_jax.training.checkpoint import abstract
from dit_jax.training.diffusion import Objective, batch_loss
from dit_jax.training.feed import Resident, Stream
from dit_jax.training.state import Params, TrainState, create
from dit_jax.training.step import CallResult, Loss, StepSettings, data_keys, make_train_call

RESIDENT_BYTES = 2**30  # larger data is streamed unless `data.resident` says otherwise
CPU_PASS = 8  # images per pass through the network on a CPU: as fast as any other number (docs/decisions.md)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Sample = Callable[..., jax.Array]


@dataclass(frozen=True)
class Experiment:
    """Everything a resolved config describes. Parts are built on first use."""

    config: ConfigDict
    autoencoder: Codec | None = None  # for `model.latents`; without it such a run can be described but not trained
    section: ClassVar[str] = "train"  # where a user sets the steps and the batch size

    @cached_property
    def info(self) -> datasets.DatasetInfo:
        """Image shape and class names."""
        return datasets.info(self.source.name, self.source.folder)

    @property
    def source(self) -> datasets.Source:
        """The data set's name and where it is stored."""
        c = self.config.data
        return datasets.Source(c.name, c.data_dir, folder_of(c))

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """The shape of what is diffused, (H, W, C): an image or its latents."""
        return checks.diffused_shape(self.config, self.info.image_shape)

    @property
    def codec(self) -> Codec:
        """Maps images to what is diffused, and back. Raises UserError if the autoencoder for it was not loaded."""
        if not self.config.model.latents:
            return PIXELS
        fix = "no autoencoder is loaded; train and sample with main.py and a workdir, or use false"
        require(self.autoencoder is not None, "model.latents", True, fix)
        return cast(Codec, self.autoencoder)

    @cached_property
    def mesh(self) -> Mesh:
        """All devices along the axis `data`."""
        return sharding.make_mesh()

    @cached_property
    def model(self) -> DiT:
        """The network, without parameters."""
        c, dropout = self.config.model, self.config.train.dropout
        same = {key: value for key, value in c.items() if key not in ("preset", "latents", "dtype")}
        return DiT(num_classes=len(self.info.class_names), dropout=dropout, dtype=DTYPES[c.dtype], **same)

    def apply(
        self, params: Params, x_t: jax.Array, t_B: jax.Array, labels_B: jax.Array, keys_B: jax.Array | None = None
    ) -> jax.Array:
        """Returns the network's prediction, float32 [B, H, W, C]; with training's keys, dropout applies.

        Timesteps must be in 0..T-1 and labels in 0..classes ("no class"); here nothing checks them.
        """
        return cast(jax.Array, self.model.apply(params, x_t, t_B, labels_B, keys_B))

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule's tables."""
        c = self.config.diffusion
        return make_schedule(c.schedule, c.num_steps, c.beta_start, c.beta_end, c.zero_terminal_snr)

    @cached_property
    def learning_rate(self) -> optimizer.Schedule:
        """The function step -> learning rate."""
        c = self.config.optimizer
        return optimizer.learning_rate_schedule(c.schedule, c.learning_rate, c.warmup_steps, self.config.train.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW."""
        c = self.config.optimizer
        return optimizer.adamw(self.learning_rate, c.b1, c.b2, c.weight_decay, c.clip_norm)

    @cached_property
    def objective(self) -> Objective:
        """What the diffusion loss depends on besides the network."""
        d, t = self.config.diffusion, self.config.train
        return Objective(
            schedule=self.schedule,
            prediction=d.prediction,
            timestep_sampling=d.timestep_sampling,
            logit_mean=d.logit_mean,
            logit_std=d.logit_std,
            stratified_timesteps=d.stratified_timesteps,
            loss_weights=loss_weights(self.schedule, d.prediction, d.loss_weighting, d.min_snr_gamma),
            label_dropout=t.label_dropout,
            null_class=len(self.info.class_names),
            flip=self.config.data.flip,
            batch_size=t.batch_size,
        )

    def loss(self, apply: Callable[..., Any]) -> Loss:
        """Returns the loss that training minimises, for a network `apply` such as `self.apply`."""
        return partial(batch_loss, apply, self.objective)

    @property
    def step_settings(self) -> StepSettings:
        """What a train step needs to know besides the loss and the optimizer."""
        return StepSettings(**{field.name: self.config.train[field.name] for field in fields(StepSettings)})

    @cached_property
    def keys(self) -> tuple[jax.Array, jax.Array]:
        """The keys (for the initial parameters, for training's draws), both from the run's single seed."""
        with jax.ensure_compile_time_eval():  # else a first use in a trace would cache a tracer
            for_params, for_training = jax.random.split(jax.random.key(self.config.seed))
        return for_params, for_training

    def init_params(self) -> Params:
        """Returns fresh parameters, float32."""
        x = jnp.zeros((1, *self.x_shape))
        zero = jnp.zeros((1,), jnp.int32)
        return self.model.init(self.keys[0], x, zero, zero)

    @cached_property
    def _shapes(self) -> TrainState:
        """The shapes and dtypes of the state."""
        return jax.eval_shape(partial(create, self.init_params, self.optimizer))

    @cached_property
    def where(self) -> TrainState:
        """The axis along which each leaf of the state is split over the devices (layout.py)."""
        return layout.split(self._shapes, self.mesh.size if self.config.train.shard_params else 1)

    def init_state(self, params: Params | None = None) -> TrainState:
        """Returns the state before the first step, placed on the devices; with the given parameters, or fresh ones."""

        def make(*given: Params) -> TrainState:
            return create(lambda: given[0] if given else self.init_params(), self.optimizer)

        given = () if params is None else (params,)
        return jax.jit(make, out_shardings=layout.shardings(self.where, self.mesh))(*given)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the state without computing it."""
        return abstract(self._shapes, layout.shardings(self.where, self.mesh))

    def check_devices(self) -> None:
        """Raises UserError unless the batch and, with `train.shard_params`, the weights split over the devices."""
        t = self.config.train
        sharding.check_batch(t.batch_size, self.mesh, f"{self.section}.batch_size", t.microbatches)
        if t.shard_params:
            layout.check(self._shapes.params, self.where.params, self.mesh)

    def train_call(self, streamed: bool = False) -> Callable[..., CallResult]:
        """Returns a function that runs many train steps in one dispatch; see `step.make_train_call`."""
        apply = self.apply
        if self.config.train.shard_params:
            apply = partial(apply_shares, self.model, layout.gather, self.where.params)
        loss, settings = self.loss(apply), self.step_settings
        return make_train_call(loss, self.optimizer, settings, self.mesh, self.keys[1], streamed, self.where)

    def feed(self, records: datasets.Records) -> Resident | Stream:
        """Returns the feed of a split: all of it, or batches if it is too large or `data.resident` says so.

        Damaged data raises UserError only when it is read.
        """
        t, resident = self.config.train, self.config.data.resident
        if resident == "true" or (resident == "auto" and records.nbytes <= RESIDENT_BYTES):
            return Resident(records, self.mesh)
        order_key, _ = data_keys(self.keys[1])
        most = min(t.steps_per_call, t.log_every, t.checkpoint_every)  # steps in any call; so many are always sent
        return Stream(records, order_key, t.batch_size, most, t.steps, self.mesh)

    def labels(self) -> np.ndarray:
        """Returns the class of each image to sample, int32 [sample.n]: the requested classes in turn."""
        c = self.config.sample
        chosen = parse_labels(c.labels, self.info.class_names)
        return np.resize(np.asarray(chosen, np.int32), c.n)

    def sampler(self, sampler: str | None = None, steps: int | None = None) -> Sample:
        """Returns sample(params, key, labels, first=0); see `make_sample`. The arguments override the config."""
        return make_sample(self, self.plan(self.timesteps(steps), sampler))

    def timesteps(self, steps: int | None = None) -> np.ndarray:
        """Returns the timesteps that sampling visits, int [steps]."""
        c = self.config.sample
        return SPACINGS[c.spacing](self.schedule, steps or c.steps)

    def plan(self, timesteps: np.ndarray | None = None, sampler: str | None = None) -> sampling.Plan:
        """Returns the sampler's table over some timesteps, by default `self.timesteps()`."""
        c, visited = self.config.sample, self.timesteps() if timesteps is None else timesteps
        return sampling.SAMPLERS[sampler or c.sampler](self.schedule, visited, c.variance, c.eta)


def make_sample(
    experiment: Experiment,
    plan: sampling.Plan,
    draw: tasks.Draw = tasks.generate,
    classifier: guidance.Logits | None = None,
    decode: bool = True,
) -> Sample:
    """Returns sample(params, key, labels int [B], first=0, inputs=()) -> float32 [B, H, W, C] in about [-1, 1].

    Image b draws its noise from fold_in(key, first + b) alone, whatever the batch; `first` is 0 or more. The batch is
    split over the mesh and into passes of `pass_size` images, the last one padded, so that an image's arithmetic (on
    CPUs: its bits) does not depend on the other images, except that accelerators take smaller passes for few images.
    Each size and number of passes compiles once. `inputs` [B, ...] are further arguments of `draw`; `classifier` guides
    with `sample.classifier_scale`. Latents become images unless `decode` is false.
    """
    c, schedule, mesh = experiment.config.sample, experiment.schedule, experiment.mesh
    interval = guidance.guidance_interval(schedule.num_steps, c.guidance_from, c.guidance_to)
    prediction, shape = experiment.config.diffusion.prediction, experiment.x_shape
    codec = experiment.codec if decode else PIXELS
    null_class = len(experiment.info.class_names)

    def per_device(
        size: int, params: Params, weights: Any, key: jax.Array, labels_B: jax.Array, index_B: jax.Array, inputs: Any
    ) -> jax.Array:
        network = partial(experiment.apply, params)

        def one_pass(labels_B: jax.Array, index_B: jax.Array, inputs: Any) -> jax.Array:
            predict = guidance.guided(network, labels_B, null_class, c.guidance, interval)
            shift = None
            if classifier is not None:
                shift = guidance.towards_labels(classifier, labels_B, schedule, c.classifier_scale, interval)
            denoise = guidance.denoiser(predict, schedule, prediction, c.clip_x_0, shift)
            x_0 = draw(denoise, schedule, plan, sampling.image_keys(key, index_B), shape, *inputs)
            return codec.decode(weights, x_0)

        return sampling.in_passes(one_pass, size, labels_B, index_B, inputs)

    whole, split = sharding.REPLICATED, sharding.SPLIT
    specs = {"in_specs": (whole, whole, whole, split, split, split), "out_specs": split}

    @cache
    def mapped(size: int) -> Callable[..., jax.Array]:
        return jax.jit(jax.shard_map(partial(per_device, size), mesh=mesh, check_vma=False, **specs))

    def sample(
        params: Params, key: jax.Array, labels: np.ndarray | jax.Array, first: int = 0, inputs: Sequence[Any] = ()
    ) -> jax.Array:
        if not isinstance(labels, Tracer):  # else their values are not known yet
            learnt_without = experiment.config.train.label_dropout > 0
            check_labels(np.asarray(labels), experiment.info.class_names, learnt_without)
            labels = np.asarray(labels, np.int32)
        if not isinstance(first, Tracer):
            first = check_first(first, len(labels))
        index = first + np.arange(len(labels), dtype=np.int32)
        few = 1 << (len(labels) - 1).bit_length()  # few images need not a batch's memory, nor each number a compile
        size = pass_size(min(c.batch_size, few), mesh)

        def fill(x: Any) -> Any:
            resize = jnp.resize if isinstance(x, Tracer) else np.resize
            return resize(x, (len(x) + -len(x) % (size * mesh.size), *x.shape[1:]))

        drawn = mapped(size)(params, codec.weights, key, fill(labels), fill(index), tuple(map(fill, inputs)))
        return drawn[: len(labels)]

    return sample


def pass_size(batch_size: int, mesh: Mesh) -> int:
    """Returns the images per pass through the network: `CPU_PASS` on CPUs, elsewhere a device's share of a batch."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return CPU_PASS if on_cpu else -(-batch_size // mesh.size)
