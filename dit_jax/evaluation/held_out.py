"""Evaluates a network on held-out images: its error at each noise level, and a bound on their likelihood.

The bound is that of DDPM (Ho et al. 2020, equation 5), with the posterior's variance in every step:

    -log p(x_0) <= KL(q(x_T | x_0), N(0, I)) + sum_t KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)) - log p(x_0 | x_1)

The three terms are `prior`, `vlb` (from our t = 1 on) and `decoder` (our t = 0). With equal variances, a KL of the sum
is (SNR[t-1] - SNR[t]) / 2 |x_0 - its estimate|^2 (Kingma et al. 2021, equation 13), on any schedule and for any
prediction that determines x_0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dit_jax.diffusion.objective import target_of, to_x_0_and_eps
from dit_jax.diffusion.schedule import Schedule, gather, q_sample

BINS = 10  # of timesteps; each image has one draw in each
HALF_LEVEL = 1 / 255  # half the distance between two grey levels in [-1, 1]
GOLDEN = (np.sqrt(5) - 1) / 2
Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
T_SAMPLING = "one t of each tenth of 0..T-1, spread evenly over the images"


@dataclass(frozen=True)
class Terms:
    """For N images and M bins: t_NM int; error_NM mean squared; kl_NM, decoder_N, prior_N nats; `values` per image.

    The KL at t = 0 is 0, as the decoder takes its place, with a draw of its own.
    """

    t_NM: np.ndarray
    error_NM: np.ndarray
    kl_NM: np.ndarray
    decoder_N: np.ndarray
    prior_N: np.ndarray
    values: int


def edges(num_steps: int) -> np.ndarray:
    """Returns the bins' edges, int [BINS + 1]: bin i has edges[i] <= t < edges[i + 1], possibly none if T < BINS."""
    return np.arange(BINS + 1) * num_steps // BINS


def timesteps(count: int, num_steps: int, seed: int) -> np.ndarray:
    """Returns the t of each image in each bin, int [count, BINS]; the first images have the same t whatever the count.

    Each bin starts at a random place and advances by the golden ratio (a Weyl sequence), so that any number of images
    spreads evenly over the bin.
    """
    start, end = edges(num_steps)[:-1], edges(num_steps)[1:]
    offset = np.random.default_rng(seed).random(BINS)
    u = (offset[None] + GOLDEN * np.arange(count)[:, None]) % 1
    return np.minimum(start[None] + np.floor(u * (end - start)[None]).astype(int), num_steps - 1)


def kl_weights(schedule: Schedule) -> np.ndarray:
    """Returns (SNR[t-1] - SNR[t]) / 2, and 0 at t = 0: nats per unit of squared error in x_0; float64 [T]."""
    snr = (schedule.alpha / schedule.sigma) ** 2
    return np.append(0.0, (snr[:-1] - snr[1:]) / 2)


def decoder_std(schedule: Schedule) -> float:
    """Returns the standard deviation of p(x_0 | x_1): the posterior's from t = 1 to 0, as in iDDPM's code.

    The posterior of t = 0 itself has none. With T = 1 it is sigma[0].
    Source: Ho et al. 2020, equation 7, for any alpha and sigma.
    """
    if schedule.num_steps == 1:
        return float(schedule.sigma[0])
    (before, now), (sigma_before, sigma) = schedule.alpha[:2], schedule.sigma[:2]
    step = sigma**2 - (now / before * sigma_before) ** 2
    return float(np.sqrt(step) * sigma_before / sigma)


def decoder_nats(x_0: jax.Array, mean: jax.Array, std: float) -> jax.Array:
    """Returns -log of the share of N(mean, std^2) that rounds to the grey level x_0, in [-1, 1].

    The darkest and the brightest level extend to infinity.
    Source: Ho et al. 2020, equation 13.
    """
    low, high = ((x_0 + side * HALF_LEVEL - mean) / std for side in (-1, 1))
    low, high = jnp.where(x_0 < -0.999, -jnp.inf, low), jnp.where(x_0 > 0.999, jnp.inf, high)
    # By symmetry the level can be put left of the mean, or around it, where log_ndtr keeps every digit.
    left, right = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    log_right = log_ndtr(right)
    return -(log_right + jnp.log1p(-jnp.exp(jnp.minimum(log_ndtr(left) - log_right, -1e-6))))


def prior_nats(schedule: Schedule, images: np.ndarray) -> np.ndarray:
    """Returns KL(q(x_T | x_0), N(0, I)) of images uint8 [N, H, W, C], summed over their values: float64 [N]."""
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    squares_N = np.square(images / 127.5 - 1).sum((1, 2, 3))
    each = sigma**2 - 1 - 2 * np.log(sigma)
    return 0.5 * (alpha**2 * squares_N + each * images[0].size)


@dataclass(frozen=True)
class Predictor:
    """apply(params, x_t, t_B, labels_B) -> what `prediction` names, and how x_0 is computed from it.

    If encode(params, images in [-1, 1]) makes latents of the images, only the errors are meaningful, as the bound is
    one for images.
    """

    apply: Callable[..., Any]
    schedule: Schedule
    prediction: str
    clip_x_0: bool
    encode: Callable[[Any, jax.Array], jax.Array] = lambda params, x: x


class Batch(NamedTuple):
    """images uint8 [B, H, W, C] with their labels, a timestep for each, and the index of each among all images."""

    images: np.ndarray | jax.Array
    labels_B: np.ndarray | jax.Array
    t_B: np.ndarray | jax.Array
    index_B: np.ndarray | jax.Array


def _terms_on_device(
    predictor: Predictor, axis: str, params: Any, key: jax.Array, column: jax.Array, batch: Batch
) -> jax.Array:
    """Returns (mean squared error, KL, decoder's nats) of every device's images at their timesteps: [all B, 3]."""
    schedule, prediction, t_B = predictor.schedule, predictor.prediction, jnp.asarray(batch.t_B)
    x_0 = predictor.encode(params, jnp.asarray(batch.images, jnp.float32) / 127.5 - 1)
    keys_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), column))(batch.index_B)
    eps = jax.vmap(lambda own: jax.random.normal(own, x_0.shape[1:]))(keys_B)
    x_t = q_sample(schedule, x_0, eps, t_B)
    output = predictor.apply(params, x_t, t_B, batch.labels_B).astype(jnp.float32)
    estimate, _ = to_x_0_and_eps(schedule, prediction, output, x_t, t_B)
    estimate = jnp.clip(estimate, -1, 1) if predictor.clip_x_0 else estimate
    error = jnp.square(output - target_of(schedule, prediction, x_0, eps, t_B)).mean((1, 2, 3))
    kl = (gather(kl_weights(schedule), t_B) * jnp.square(estimate - x_0)).sum((1, 2, 3))
    decoder = decoder_nats(x_0, estimate, decoder_std(schedule)).sum((1, 2, 3))
    return jax.lax.all_gather(jnp.stack([error, kl, decoder], 1), axis, tiled=True)


def make_terms(predictor: Predictor, mesh: Mesh, batch_size: int) -> Callable[..., Terms]:
    """Returns terms(params, read, count, seed, told) of the network with the images' labels, without guidance.

    `read(indices [B])` returns (images uint8 [B, H, W, C], labels int [B]) for indices below `count`. The noise is
    keyed by seed, image and bin, so nothing depends on `batch_size` or the mesh. Batches are split over the mesh, the
    last one padded. `told(done)` is called after each batch with the number of images done.
    """
    (axis,) = mesh.axis_names
    per_device, schedule = partial(_terms_on_device, predictor, axis), predictor.schedule
    whole, split = P(), P(axis)
    specs = (whole, whole, whole, split)
    call = jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False))

    def terms(params: Any, read: Read, count: int, seed: int, told: Callable[[int], None] = lambda done: None) -> Terms:
        found, prior = [], []
        size = -(-min(batch_size, count) // mesh.size) * mesh.size
        t_NM = timesteps(count, schedule.num_steps, seed)
        columns_NM = np.append(t_NM, np.zeros((count, 1), int), 1).astype(np.int32)  # last, the decoder's at t = 0
        for first in range(0, count, size):
            index = np.arange(first, first + size) % count
            images, labels = read(index)
            batch = Batch(images, labels.astype(np.int32), columns_NM[index, 0], index.astype(np.int32))
            parts = [
                call(params, jax.random.key(seed), np.int32(column), batch._replace(t_B=columns_NM[index, column]))
                for column in range(BINS + 1)
            ]
            found.append(np.stack(parts, 1)[: count - first])
            prior.append(prior_nats(schedule, images[: count - first]))
            told(min(first + size, count))
        error, kl, decoder = np.moveaxis(np.concatenate(found).astype(np.float64), 2, 0)
        values = images[0].size
        return Terms(t_NM, error[:, :BINS], kl[:, :BINS], decoder[:, BINS], np.concatenate(prior), values)

    return terms


def loss_by_noise(terms: Terms, num_steps: int) -> dict[str, list[Any]]:
    """Returns the mean squared error in each bin, t_from <= t < t_to, None if it is empty, and the number of draws."""
    bounds = edges(num_steps)
    full = bounds[:-1] < bounds[1:]
    loss = [float(value) if some else None for value, some in zip(terms.error_NM.mean(0), full, strict=True)]
    draws = [len(terms.error_NM) * int(some) for some in full]
    return {"t_from": bounds[:-1].tolist(), "t_to": bounds[1:].tolist(), "loss": loss, "n": draws}


def bits_per_dim(terms: Terms, num_steps: int) -> tuple[float, dict[str, Any]]:
    """Returns the bound in bits per value of an image, and its parts with the standard error over the images."""
    to_bits = 1 / (np.log(2) * terms.values)
    vlb_N = (np.diff(edges(num_steps))[None] * terms.kl_NM).sum(1)  # each draw stands for all t of its bin
    parts = {"prior": terms.prior_N, "vlb": vlb_N, "decoder": terms.decoder_N}
    total_N, count = sum(parts.values()), len(vlb_N)
    means = {name: float(nats_N.mean() * to_bits) for name, nats_N in parts.items()}
    error = float(np.std(total_N, ddof=1) / np.sqrt(count) * to_bits) if count > 1 else None
    return sum(means.values()), means | {"standard_error": error, "n": count, "t_sampling": T_SAMPLING}
