"""Against the schedulers of diffusers, in PyTorch: tables, timesteps, targets, and whole trajectories step by step.

Needs requirements-peers.txt: run by `pytest -m slow tests/diffusion/test_diffusers_peer.py`, skipped without it. Where
the two differ by design, the comment says how.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion.guidance import denoiser
from dit_jax.diffusion.objective import loss_weights, target_of
from dit_jax.diffusion.sampling import ddim, ddpm, dpmpp_2m, heun, image_keys, image_noise, sample
from dit_jax.diffusion.schedule import cosine, linear, q_sample, rectified, to_zero_terminal_snr
from dit_jax.diffusion.spacing import SPACINGS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
training_utils = pytest.importorskip("diffusers.training_utils")
pytestmark = pytest.mark.slow

SHAPE = (2, 2, 3)
KEYS = image_keys(jax.random.key(0), jnp.arange(4))
DDPM = linear(1000, 1e-4, 0.02)
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def draw(number):
    return np.asarray(image_noise(KEYS, number, SHAPE))


def network(x, t):
    """Returns a prediction that depends on t and is not linear in x, for NumPy."""
    return np.sin(2 * x) * (0.4 + t / 2000) + 0.3 * np.cos(x)


def ours(schedule, plan, prediction, clip=False):
    """Returns the images that `sample` draws with `network`."""
    wave = lambda x, t: jnp.sin(2 * x) * (0.4 + t / 2000)[:, None, None, None] + 0.3 * jnp.cos(x)  # noqa: E731
    denoise = denoiser(wave, schedule, prediction, clip)
    return np.asarray(jax.jit(lambda x: sample(denoise, plan, x, KEYS))(jnp.asarray(draw(0))))


def theirs(scheduler, **options):
    """Returns the images of a scheduler, in float64, and the timesteps that it visited."""
    x = torch.tensor(draw(0), dtype=torch.float64)
    visited = []
    for row, t in enumerate(scheduler.timesteps):
        visited.append(float(t))
        extra = {name: make(row) for name, make in options.items()}
        x = scheduler.step(torch.tensor(network(x.numpy(), float(t))), t, x, **extra).prev_sample
    return x.numpy(), visited


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (DDPM, BETAS),
        (cosine(1000), {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}),
        (to_zero_terminal_snr(DDPM), BETAS | {"rescale_betas_zero_snr": True}),
    ],
    ids=["linear", "cosine", "zero"],
)
def test_tables(schedule, settings):
    """Theirs are float32 products of 1000 factors, and end at 1e-8 or so where zero is meant."""
    bar = diffusers.DDPMScheduler(**settings).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alpha**2, bar, rtol=3e-4, atol=2e-7)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 27, 31, 33, 47, 50, 999, 1000])
def test_timesteps(spacing, steps):
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.tolist()
    if (spacing, steps) == ("linspace", 1):
        expected = [999]  # theirs is [0], where no noise is left to remove
    assert SPACINGS[spacing](DDPM, steps).tolist() == expected


def test_noising_and_targets():
    scheduler = diffusers.DDPMScheduler(**BETAS)
    x_0, eps, t = draw(1), draw(2), np.array([0, 10, 500, 999])
    as_torch = [torch.tensor(x_0), torch.tensor(eps), torch.tensor(t)]
    np.testing.assert_allclose(q_sample(DDPM, x_0, eps, t), scheduler.add_noise(*as_torch), rtol=2e-5, atol=1e-5)
    v = target_of(DDPM, "v", x_0, eps, t)
    np.testing.assert_allclose(v, scheduler.get_velocity(*as_torch), rtol=2e-5, atol=1e-5)


def test_min_snr_weights():
    """Hang et al. 2023, as in diffusers' training scripts."""
    t = torch.arange(1000)
    snr = training_utils.compute_snr(diffusers.DDPMScheduler(**BETAS), t).double().numpy()
    for prediction, divisor in (("eps", snr), ("v", snr + 1), ("x0", 1.0)):
        weights = loss_weights(DDPM, prediction, "min_snr", 5.0)
        np.testing.assert_allclose(weights, np.minimum(snr, 5) / divisor, rtol=1e-3)


PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(prediction, eta, spacing):
    """T / steps must be whole: theirs takes t - T / steps as the next timestep, ours the next one visited."""
    settings = BETAS | {"clip_sample": False, "timestep_spacing": spacing, "prediction_type": PREDICTIONS[prediction]}
    scheduler = diffusers.DDIMScheduler(**settings)
    scheduler.set_timesteps(20)
    images, visited = theirs(scheduler, eta=lambda _: eta, variance_noise=lambda row: torch.tensor(draw(row + 1)))
    plan = ddim(DDPM, np.array(visited, int), eta)
    np.testing.assert_allclose(ours(DDPM, plan, prediction), images, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(prediction, variance, name, steps, clip, monkeypatch):
    settings = BETAS | {"clip_sample": clip, "variance_type": name, "prediction_type": PREDICTIONS[prediction]}
    scheduler = diffusers.DDPMScheduler(**settings)
    scheduler.set_timesteps(steps)
    rows = iter(range(1, steps + 1))
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: torch.tensor(draw(next(rows)), dtype=torch.float64))
    images, visited = theirs(scheduler)
    plan = ddpm(DDPM, np.array(visited, int), variance)
    np.testing.assert_allclose(ours(DDPM, plan, prediction, clip), images, rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 10, 25])
def test_dpmpp_2m(prediction, spacing, steps):
    """Over the timesteps that theirs visits, which for `linspace` are not ours: the last of steps + 1 is left out."""
    settings = BETAS | {"timestep_spacing": spacing, "prediction_type": PREDICTIONS[prediction]}
    scheduler = diffusers.DPMSolverMultistepScheduler(**settings, solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    images, visited = theirs(scheduler)
    plan = dpmpp_2m(DDPM, np.array(visited, int))
    np.testing.assert_allclose(ours(DDPM, plan, prediction), images, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("make", [ddim, heun])
def test_flow_matching(make):
    """Euler's and Heun's methods on the rectified tables, over levels of our own; their timestep is sigma T."""
    t = np.array([999, 820, 555, 301, 120, 33])
    sigma = rectified(1000).sigma[t]
    if make is ddim:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=sigma.tolist())
    else:
        scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(len(t))
        levels = torch.tensor(np.append(sigma, 0.0))
        scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.timesteps = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2)]) * 1000
    x = torch.tensor(draw(0), dtype=torch.float64)
    for time in scheduler.timesteps:
        x = scheduler.step(torch.tensor(network(x.numpy(), float(time) - 1)), time, x).prev_sample
    np.testing.assert_allclose(ours(rectified(1000), make(rectified(1000), t), "velocity"), x, rtol=1e-4, atol=1e-4)
