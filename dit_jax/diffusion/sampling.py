"""Samplers, which go from noise to images by a `lax.scan` over precomputed coefficients.

Every sampler here is linear in the x, x_0 and eps it has seen, so it is a table with one row per network evaluation:

    (x_0, eps) = denoise(x, t)
    x_next     = a_x x + a_base base + a_x0 x_0 + a_x0_prev x_0_prev + a_eps eps + a_eps_prev eps_prev + a_noise z

where `base` is the x at the start of the latest row marked `keep`, and `prev` is the row before. The tables are
computed in float64, and one function runs them all. The last row leaves no noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.guidance import Denoiser
from dit_jax.diffusion.schedule import Schedule

VARIANCES = ("small", "large")


class Plan(NamedTuple):
    """A sampler's table for R network evaluations: t is int [R], each coefficient float64 [R]."""

    t: Any
    x: Any
    base: Any
    x_0: Any
    x_0_prev: Any
    eps: Any
    eps_prev: Any
    noise: Any
    keep: Any


def make_plan(t: np.ndarray, **coefficients: np.ndarray | float) -> Plan:
    """Returns a plan with the given coefficients and zeros for the others; `keep` is 1 unless given."""
    rows = {name: np.zeros(len(t)) for name in Plan._fields[1:]} | {"keep": np.ones(len(t))}
    rows |= {name: np.broadcast_to(np.asarray(value, np.float64), t.shape) for name, value in coefficients.items()}
    return Plan(t=t, **rows)


def levels(schedule: Schedule, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns alpha, sigma at each step's start, then at its end: the next visited timestep, or finally clean data."""
    alpha, sigma = schedule.alpha[timesteps], schedule.sigma[timesteps]
    return alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)


def ddpm(schedule: Schedule, timesteps: np.ndarray, variance: str) -> Plan:
    """Returns the plan of ancestral sampling, x_s ~ q(x_s | x_t, x_0) with the predicted x_0.

    With alpha_ts = alpha_t / alpha_s and beta = sigma_t^2 - alpha_ts^2 sigma_s^2, the mean is
    (alpha_ts sigma_s^2 x_t + alpha_s beta x_0) / sigma_t^2. The variance is beta sigma_s^2 / sigma_t^2 (`small`) or
    beta (`large`); the last step adds no noise.
    Source: DDPM (Ho et al. 2020), equations 6-7 and section 3.2, generalised to any two levels as in Kingma et al.
    2021, appendix A.2.
    """
    alpha, sigma, alpha_s, sigma_s = levels(schedule, timesteps)
    alpha_ts = alpha / alpha_s
    beta = sigma**2 - (alpha_ts * sigma_s) ** 2
    noise = np.sqrt(beta) * (sigma_s / sigma if variance == "small" else (sigma_s > 0))
    return make_plan(timesteps, x=alpha_ts * (sigma_s / sigma) ** 2, x_0=alpha_s * beta / sigma**2, noise=noise)


def ddim(schedule: Schedule, timesteps: np.ndarray, eta: float = 0.0) -> Plan:
    """Returns the plan of x_s = alpha_s x_0 + sqrt(sigma_s^2 - n^2) eps + n z, where z is new noise.

    n is eta times the standard deviation of `ddpm` with `small` variance. eta = 0 adds no noise, which on the rectified
    schedule is Euler's method on the flow; eta = 1 is ancestral sampling.
    Source: DDIM (Song et al. 2021), equations 12 and 16, generalised to any two levels as in `ddpm`.
    """
    alpha, sigma, alpha_s, sigma_s = levels(schedule, timesteps)
    fresh = 1 - (alpha / alpha_s * sigma_s / sigma) ** 2  # share of the noise variance at s that x_t does not determine
    return make_plan(
        timesteps, x_0=alpha_s, eps=sigma_s * np.sqrt(1 - eta**2 * fresh), noise=eta * sigma_s * np.sqrt(fresh)
    )


def dpmpp_2m(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    """Returns a second-order plan of one evaluation per step, which extrapolates the predicted x_0.

    x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) D. D = x_0 + (x_0 - x_0_prev) / (2 r) is linear
    extrapolation in log-SNR, with r the previous step's length there over this one's. D = x_0 in the first step, which
    has no x_0_prev, in the last, which is infinitely long, and after a step from pure noise (r is infinite).
    Source: DPM-Solver++ (Lu et al. 2022), algorithm 2, with exp(-h) = alpha_t sigma_s / (alpha_s sigma_t).
    """
    alpha, sigma, alpha_s, sigma_s = levels(schedule, timesteps)
    with np.errstate(divide="ignore"):
        half_log_snr = np.log(alpha / sigma)  # minus infinity at pure noise
    ahead = np.zeros(len(timesteps))  # 1 / (2 r)
    length = np.diff(half_log_snr)
    ahead[1:-1] = length[1:] / (2 * length[:-1])
    step = alpha_s - alpha * sigma_s / sigma
    return make_plan(timesteps, x=sigma_s / sigma, x_0=step * (1 + ahead), x_0_prev=-step * ahead)


def heun(schedule: Schedule, timesteps: np.ndarray) -> Plan:
    """Returns a second-order plan: a DDIM step to s, then again from t with the mean of (x_0, eps) at both ends.

    It integrates dx = x_0 dalpha + eps dsigma along the trajectory by the trapezoidal rule; the last step, to clean
    data, is plain DDIM. N steps take 2 N - 1 evaluations.
    Source: Karras et al. 2022, algorithm 1, but integrated over alpha and sigma instead of time; on the rectified
    schedule both are the same.
    """
    alpha, sigma, alpha_s, sigma_s = levels(schedule, timesteps)
    d_alpha, d_sigma = alpha_s - alpha, sigma_s - sigma
    rows = 2 * len(timesteps) - 1
    corrector = np.arange(rows) % 2
    predictor = 1 - corrector
    step = np.arange(rows) // 2
    return make_plan(
        timesteps[step + corrector],
        base=corrector,
        x_0=np.where(corrector, d_alpha[step] / 2, alpha_s[step]),
        x_0_prev=corrector * d_alpha[step] / 2,
        eps=np.where(corrector, d_sigma[step] / 2, sigma_s[step]),
        eps_prev=corrector * d_sigma[step] / 2,
        keep=predictor,
    )


# name -> function (schedule, timesteps, variance, eta) -> plan; only `ddpm` reads the variance, and only `ddim` eta
SAMPLERS: dict[str, Callable[[Schedule, np.ndarray, str, float], Plan]] = {
    "ddpm": lambda schedule, timesteps, variance, _: ddpm(schedule, timesteps, variance),
    "ddim": lambda schedule, timesteps, _, eta: ddim(schedule, timesteps, eta),
    "dpmpp_2m": lambda schedule, timesteps, *_: dpmpp_2m(schedule, timesteps),
    "heun": lambda schedule, timesteps, *_: heun(schedule, timesteps),
}


def image_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
    """Returns a key per image, fold_in(key, i), so that image i is the same in any batch, on any number of devices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B)


def image_noise(keys_B: jax.Array, draw: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns draw number `draw` of each image's noise: N(0, 1), float32 [B, *shape]. Draw 0 is the starting noise."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), shape))(keys_B)


def start(schedule: Schedule, plan: Plan, keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns pure noise, draw 0 of each key, scaled to the deviation of x_t at the plan's first level: [B, *shape].

    The scale assumes data of unit variance. It is 1 for every variance-preserving schedule, and for every plan that
    starts at t = T-1.
    """
    return float(np.hypot(schedule.alpha[plan.t[0]], schedule.sigma[plan.t[0]])) * image_noise(keys_B, 0, shape)


def is_stochastic(plan: Plan) -> bool:
    """Returns whether any row of the plan adds noise."""
    return bool(np.any(plan.noise))


Amend = Callable[[jax.Array, jax.Array], jax.Array]


def sample(denoise: Denoiser, plan: Plan, x_T: jax.Array, keys_B: jax.Array, amend: Amend | None = None) -> jax.Array:
    """Runs a plan from noise x_T [B, H, W, C] to images, float32 and not clipped.

    Row r adds draw r + 1 of each key; then `amend(x, draw)`, if given, replaces x, with draw = r + 1.
    """
    return _run(denoise, plan, x_T, keys_B, np.zeros(0, int), amend)[0]


def trajectory(
    denoise: Denoiser, plan: Plan, x_T: jax.Array, keys_B: jax.Array, watched: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Returns x_t and the predicted x_0 at the rows `watched` of a plan: [B, rows + 1, H, W, C] each.

    Both end with the final images. Only the watched rows take memory, however many the plan has.
    """
    x, seen = _run(denoise, plan, x_T, keys_B, watched, None)
    x_t, x_0 = jnp.concatenate([seen, jnp.stack([x, x])[None]]).transpose(1, 2, 0, *range(3, seen.ndim))
    return x_t, x_0


def in_passes(draw: Callable[..., jax.Array], size: int, *arrays: Any) -> jax.Array:
    """Returns draw(*arrays) for arrays [B, ...], computed in passes of `size` images; B is a multiple of `size`.

    Matrix products of different shapes sum in different orders. With passes of one shape, an image's bits do not depend
    on how many others are drawn.
    """
    split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    drawn = jax.lax.map(lambda part: draw(*part), split)
    return drawn.reshape(-1, *drawn.shape[2:])


def _run(
    denoise: Denoiser, plan: Plan, x_T: jax.Array, keys_B: jax.Array, watched: np.ndarray, amend: Amend | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the images, and (x_t, x_0) at the rows `watched`: [rows, 2, B, H, W, C]."""
    stochastic = is_stochastic(plan)
    rows = Plan(jnp.asarray(plan.t, jnp.int32), *(jnp.asarray(c, jnp.float32) for c in plan[1:]))
    slots = np.full(len(plan.t), len(watched))  # where each row is stored; beyond the end, it is not
    slots[watched] = np.arange(len(watched))

    def step(carry: Any, scanned: tuple[jax.Array, jax.Array, Plan]) -> tuple[Any, None]:
        (x, base, x_0_prev, eps_prev), seen = carry
        draw, slot, row = scanned
        x_0, eps = denoise(x, jnp.full(x.shape[:1], row.t))
        seen = seen.at[slot].set(jnp.stack([x, x_0]), mode="drop") if len(watched) else seen
        base = jnp.where(row.keep > 0, x, base)
        x = row.x * x + row.base * base + row.x_0 * x_0 + row.x_0_prev * x_0_prev
        x = x + row.eps * eps + row.eps_prev * eps_prev
        if stochastic:
            x = x + row.noise * image_noise(keys_B, draw, x.shape[1:])
        if amend is not None:
            x = amend(x, draw)
        return ((x, base, x_0, eps), seen), None

    zeros, seen = jnp.zeros_like(x_T), jnp.zeros((len(watched), 2, *x_T.shape))
    scanned = jnp.arange(1, len(plan.t) + 1), jnp.asarray(slots), rows
    ((x, *_), seen), _ = jax.lax.scan(step, ((x_T, x_T, zeros, zeros), seen), scanned)
    return x, seen
