"""dit-jax: class-conditional Diffusion Transformers in JAX.

    import jax, dit_jax
    run = dit_jax.load("runs/shapes")                              # the newest checkpoint of a workdir
    images = run.sample(run.ema_params, jax.random.key(0), [3, 5])  # float32 [2, H, W, C], about -1 to 1

Names such as `x_BHWC` spell out an array's axes: B batch; H, W, C image height, width and channels; P patch; N tokens
(M for keys); D model width; K key/value heads; G query heads per key/value head; E head width; F MLP width; T diffusion
timesteps; R rows (of a sampling plan or a matrix); L long skips.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports `dit_jax.load` on first use, so that importing one submodule does not import all of them (PEP 562)."""
    if name != "load":
        raise AttributeError(f"module 'dit_jax' has no attribute '{name}'")
    from dit_jax.loading import load

    return load
