"""The training objective: prediction targets, the sampling of timesteps, and the loss with its weightings.

A prediction is linear in the pair (x_0, eps): target = p x_0 + q eps. Together with x_t = alpha x_0 + sigma eps, that
is two equations for two unknowns, so one solve turns any prediction back into (x_0, eps).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.schedule import Schedule, gather, q_sample

# name -> (p[T], q[T]) of target = p x_0 + q eps
PREDICTIONS: dict[str, Callable[[Schedule], tuple[np.ndarray, np.ndarray]]] = {
    "eps": lambda s: (0 * s.alpha, 1 + 0 * s.sigma),  # DDPM (Ho et al. 2020), equation 14
    "x0": lambda s: (1 + 0 * s.alpha, 0 * s.sigma),
    "v": lambda s: (-s.sigma, s.alpha),  # Salimans & Ho 2022, section 4
    "velocity": lambda s: (-1 + 0 * s.alpha, 1 + 0 * s.sigma),  # rectified flow: d x_t / d s = eps - x_0
}
# name -> function (u in [0, 1), mean, std) -> the u-quantile of t / T, float32
TIMESTEP_SAMPLING: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "uniform": lambda u, mean, std: u,
    # Esser et al. 2024, section 3.1: sigmoid(N(mean, std^2)); mean > 0 favours higher noise levels
    "logit_normal": lambda u, mean, std: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u)),
}
SMALLEST_SIGMA = 0.05  # below this sigma the velocity weighting stops growing (Li & He 2025)
# name -> function (alpha, sigma, determinant, gamma) -> weight of the squared error at each timestep, float64 [T]
LOSS_WEIGHTINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = {
    "uniform": lambda alpha, sigma, determinant, gamma: np.ones_like(alpha),
    # Hang et al. 2023: the squared error of x_0 gets the weight min(SNR, gamma); the error of x_0 is the output's times
    # sigma / determinant
    "min_snr": lambda alpha, sigma, determinant, gamma: np.minimum(alpha**2, gamma * sigma**2) / determinant**2,
    # Li & He 2025: the squared error of x_0 gets the weight 1 / max(sigma, 0.05)^2, which makes it that of the velocity
    # (rectified schedule) or of v (the others)
    "velocity": lambda alpha, sigma, determinant, gamma: np.square(
        sigma / np.maximum(sigma, SMALLEST_SIGMA) / determinant
    ),
}
QUARTERS = 4  # the loss is also logged for each quarter of the timesteps


def target_of(schedule: Schedule, prediction: str, x_0: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """Returns the network's target, p x_0 + q eps: [B, H, W, C]."""
    p, q = PREDICTIONS[prediction](schedule)
    return gather(p, t_B) * x_0 + gather(q, t_B) * eps


def determinant(schedule: Schedule, prediction: str) -> np.ndarray:
    """Returns alpha q - sigma p, the determinant of the two equations for (x_0, eps): float64 [T]."""
    p, q = PREDICTIONS[prediction](schedule)
    return schedule.alpha * q - schedule.sigma * p


def solvable(schedule: Schedule, prediction: str) -> bool:
    """Returns whether (x_0, eps) can be recovered in float32 at every t; from eps they cannot where alpha is 0.

    Source: Lin et al. 2023, section 3.2. The smallest determinant of DDPM itself is 0.0064.
    """
    return bool(np.all(np.abs(determinant(schedule, prediction)) > 1e-5))


def to_x_0_and_eps(
    schedule: Schedule, prediction: str, output: jax.Array, x_t: jax.Array, t_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solves alpha x_0 + sigma eps = x_t and p x_0 + q eps = output for (x_0, eps), each [B, H, W, C]."""
    p, q = PREDICTIONS[prediction](schedule)
    d = determinant(schedule, prediction)
    x_0 = gather(q / d, t_B) * x_t - gather(schedule.sigma / d, t_B) * output
    eps = gather(schedule.alpha / d, t_B) * output - gather(p / d, t_B) * x_t
    return x_0, eps


def loss_weights(schedule: Schedule, prediction: str, weighting: str, gamma: float) -> np.ndarray:
    """Returns the weight of the squared error at each timestep, finite for every solvable prediction: float64 [T]."""
    return LOSS_WEIGHTINGS[weighting](*schedule, determinant(schedule, prediction), gamma)


def stratify(u_B: jax.Array, position_B: jax.Array, batch_size: int) -> jax.Array:
    """Stratifies draws u of [0, 1): the image at position i of the global batch gets one in [i, i + 1) / batch_size.

    Each image still sees all of [0, 1) over many batches, because its position is random. The draws of a batch do not
    depend on the number of devices.
    Source: low-discrepancy timesteps, Kingma et al. 2021, appendix I.1, but with an independent draw per image.
    """
    return (position_B + u_B) / batch_size


def timestep_at(u_B: jax.Array, num_steps: int, sampling: str, mean: float, std: float) -> jax.Array:
    """Maps uniform u in [0, 1) to timesteps, int32 in 0..T-1, by the quantile function of their distribution."""
    s = TIMESTEP_SAMPLING[sampling](u_B, mean, std)
    return jnp.minimum((s * num_steps).astype(jnp.int32), num_steps - 1)


def diffusion_loss(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: Schedule,
    prediction: str,
    x_0: jax.Array,
    eps: jax.Array,
    t_B: jax.Array,
) -> jax.Array:
    """Returns the mean squared error of the prediction over each image, float32 [B]. For `eps`: DDPM, equation 14.

    `predict(x_t, t_B)` is the network with the class labels already bound.
    """
    output = predict(q_sample(schedule, x_0, eps, t_B), t_B)
    error = output.astype(jnp.float32) - target_of(schedule, prediction, x_0, eps, t_B)
    return jnp.square(error).mean(axis=(1, 2, 3))


def by_quarter(loss_B: jax.Array, t_B: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns loss sums and image counts for each quarter of the timesteps, least noisy first: float32 [4] each."""
    member_BQ = jax.nn.one_hot(t_B * QUARTERS // num_steps, QUARTERS)
    # Not a product: 0 times a loss that is not finite would be NaN in the other quarters too.
    return jnp.where(member_BQ > 0, loss_B[:, None], 0).sum(0), member_BQ.sum(0)
