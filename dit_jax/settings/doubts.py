"""Warns of settings that work but are probably not intended; checks.py refuses those that cannot work."""

from ml_collections import ConfigDict

from dit_jax.diffusion.guidance import guidance_interval
from dit_jax.diffusion.schedule import Schedule, make_schedule
from dit_jax.diffusion.spacing import SPACINGS
from dit_jax.settings.checks import TASKS_WITH_IMAGES

APART = 10.0  # ratio of two sigmas above which Heun's samples got worse in tests (at 54 they did, at 2 not)
SIGNAL = 0.1  # largest share of the image (alpha) where sampling may start from pure noise; above it, samples suffer


def doubts(config: ConfigDict, mode: str) -> list[str]:
    """Returns a line for each doubtful setting of a resolved config that a mode of main.py reads."""
    d = config.diffusion
    schedule = make_schedule(d.schedule, d.num_steps, d.beta_start, d.beta_end, d.zero_terminal_snr)
    if mode == "train":
        return [*about_schedule(schedule), *about_rate(config)]
    sampling = about_sampling(config, schedule) if mode in ("sample", "evaluate") else []
    return [*sampling, *(about_judging(config) if mode == "evaluate" else [])]


def about_schedule(schedule: Schedule) -> list[str]:
    """Warns if the last timestep is far from the pure noise that sampling starts from."""
    T, left = schedule.num_steps, schedule.alpha[-1]
    if left <= SIGNAL:
        return []
    fix = "raise the betas (scale DDPM's, for 1000 steps, by 1000 / num_steps), or set diffusion.zero_terminal_snr=true"
    return [f"diffusion.num_steps={T}: {left:.0%} of the image is left at the last timestep, but sampling starts from "
            f"pure noise; {fix}"]  # fmt: skip


def about_rate(config: ConfigDict) -> list[str]:
    """Warns if the learning rate never reaches its peak."""
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    never = "the learning rate never reaches its peak; use fewer"
    return [f"optimizer.warmup_steps={warmup} is above train.steps={steps}: {never}"] if warmup > steps else []


def about_sampling(config: ConfigDict, schedule: Schedule) -> list[str]:
    """Warns if sampling starts where an image is expected, a step is too large, or guidance is never on."""
    c, found = config.sample, []
    timesteps = SPACINGS[c.spacing](schedule, c.steps)
    start, last = timesteps[0], schedule.num_steps - 1
    if c.task not in TASKS_WITH_IMAGES and schedule.alpha[start] > SIGNAL:
        where = f"sample.spacing={c.spacing} with sample.steps={c.steps} begins with pure noise at timestep {start} of "
        fix = "use sample.spacing=trailing" if start < last else "the process never reaches noise"
        found.append(f"{where}0..{last}, where {schedule.alpha[start]:.0%} of the image is expected; {fix}")
    *_, before, end = (last, *timesteps)
    apart = schedule.sigma[before] / schedule.sigma[end]
    key = "task" if c.task == "invert" else "sampler"  # an inversion begins with this step, and Heun's method ends so
    if c[key] in ("invert", "heun") and config.diffusion.prediction == "x0" and apart > APART:
        where = f"the noise of its last two timesteps, {before} and {end}, differs by a factor of {apart:.0f},"
        fix = "which multiplies the error of x_0 at the second; use sample.spacing=trailing"
        found.append(f"sample.{key}={c[key]} with sample.spacing={c.spacing}: {where} {fix}")
    interval = guidance_interval(schedule.num_steps, c.guidance_from, c.guidance_to)
    if (c.guidance != 1 or c.classifier_scale) and not interval[timesteps].any():
        between = f"sample.guidance_from={c.guidance_from} and sample.guidance_to={c.guidance_to}"
        key = "guidance" if c.guidance != 1 else "classifier_scale"
        found.append(f"sample.{key}={c[key]} has no effect: no timestep that is visited lies between {between}")
    return found


def about_judging(config: ConfigDict) -> list[str]:
    """Warns if the classifier that guides samples also judges them."""
    scale = config.sample.classifier_scale
    if not scale or config.evaluate.features != "classifier":
        return []
    return [f"sample.classifier_scale={scale}: the classifier that guides samples also judges them, so accuracy and "
            "distances look too good; use evaluate.features=inception, or another judge"]  # fmt: skip
