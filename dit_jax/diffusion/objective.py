"""What the network predicts, at which noise levels it is asked, and how wrong it was.

A prediction is a linear reading of the pair (x_0, eps): target = p x_0 + q eps. Together with x_t = alpha x_0 +
sigma eps that is two equations for two unknowns, so one solve turns any prediction back into (x_0, eps).
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
# name -> the u-quantile of t / T, of (u in [0, 1), mean, std): float32
TIMESTEP_SAMPLING: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "uniform": lambda u, mean, std: u,
    # Esser et al. 2024, section 3.1: sigmoid(N(mean, std^2)); mean > 0 asks for more noise
    "logit_normal": lambda u, mean, std: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u)),
}
SMALLEST_SIGMA = 0.05  # below it the velocity weighting grows no more (Li & He 2025)
# name -> factor of the squared error at each timestep, of (alpha, sigma, determinant, gamma): float64 [T]
LOSS_WEIGHTINGS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = {
    "uniform": lambda alpha, sigma, determinant, gamma: np.ones_like(alpha),
    # Hang et al. 2023: an error of x_0 counts min(SNR, gamma), and is sigma / determinant of the output's
    "min_snr": lambda alpha, sigma, determinant, gamma: np.minimum(alpha**2, gamma * sigma**2) / determinant**2,
    # Li & He 2025: an error of x_0 counts 1 / max(sigma, 0.05)^2, so the velocity's (rectified) or v's (others)
    "velocity": lambda alpha, sigma, determinant, gamma: np.square(
        sigma / np.maximum(sigma, SMALLEST_SIGMA) / determinant
    ),
}
QUARTERS = 4  # the loss is also logged by quarters of the noise levels


def target_of(schedule: Schedule, prediction: str, x_0: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """What the network should say of x_t: [B, H, W, C]."""
    p, q = PREDICTIONS[prediction](schedule)
    return gather(p, t_B) * x_0 + gather(q, t_B) * eps


def determinant(schedule: Schedule, prediction: str) -> np.ndarray:
    """alpha q - sigma p, of the two equations for (x_0, eps): float64 [T]."""
    p, q = PREDICTIONS[prediction](schedule)
    return schedule.alpha * q - schedule.sigma * p


def solvable(schedule: Schedule, prediction: str) -> bool:
    """Whether (x_0, eps) can be recovered in float32 at every t; from noise they cannot where alpha is 0.

    Source: Lin et al. 2023, section 3.2. DDPM's own smallest determinant is 0.0064.
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
    """The factor of the squared error at each timestep, finite for every solvable prediction: float64 [T]."""
    return LOSS_WEIGHTINGS[weighting](*schedule, determinant(schedule, prediction), gamma)


def stratify(u_B: jax.Array, position_B: jax.Array, batch_size: int) -> jax.Array:
    """Draws of [0, 1) spread over it: that of the image at position i of the global batch goes to [i, i + 1) / batch.

    Over many batches each image still sees all of [0, 1), because its position is random. On any number of devices the
    batch has the same draws. Source: low-discrepancy timesteps, Kingma et al. 2021, appendix I.1, with a draw an image.
    """
    return (position_B + u_B) / batch_size


def timestep_at(u_B: jax.Array, num_steps: int, sampling: str, mean: float, std: float) -> jax.Array:
    """The timesteps, int32 in 0..T-1, at the u-quantiles of how they are sampled; u in [0, 1) is drawn evenly."""
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
    """Mean squared error of the prediction over an image's values, float32 [B]. DDPM, equation 14 for `eps`.

    `predict(x_t, t_B)` is the network with its class labels already in.
    """
    output = predict(q_sample(schedule, x_0, eps, t_B), t_B)
    error = output.astype(jnp.float32) - target_of(schedule, prediction, x_0, eps, t_B)
    return jnp.square(error).mean(axis=(1, 2, 3))


def by_quarter(loss_B: jax.Array, t_B: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Sums of the loss and counts of images in each quarter of the timesteps, least noise first: float32 [4] each."""
    member_BQ = jax.nn.one_hot(t_B * QUARTERS // num_steps, QUARTERS)
    # Not a product: 0 times a loss that is not finite would spoil the quarters that it is not in.
    return jnp.where(member_BQ > 0, loss_B[:, None], 0).sum(0), member_BQ.sum(0)
