"""dit-jax: class-conditional Diffusion Transformers in JAX.

    import jax, dit_jax
    run = dit_jax.load("runs/shapes")                              # the newest checkpoint of a workdir
    images = run.sample(run.ema_params, jax.random.key(0), [3, 5])  # float32 [2, H, W, C], about -1 to 1

Letters of array axes, in names such as `x_BHWC`: B batch; H, W, C image; P patch; N tokens (M as keys); D width; K
key/value heads; G query heads per K; E head width; F MLP width; T steps of the diffusion process; R rows of a plan; L
long skips.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`dit_jax.load`, imported when first used: a submodule alone does not need them all (PEP 562)."""
    if name != "load":
        raise AttributeError(f"module 'dit_jax' has no attribute '{name}'")
    from dit_jax.loading import load

    return load
