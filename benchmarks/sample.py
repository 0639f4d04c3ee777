"""Compares our sampling speed and PyTorch's, in turns on this machine: DDIM with guidance in one doubled pass.

    python -m benchmarks.sample                      # 10 steps of the report's model, batch 16, guidance 2
    python -m benchmarks.sample --batch=1000 --dtype=bfloat16 --config.sample.steps=50

The cost of a step does not depend on the number of steps, so a few suffice.
"""

import sys
from collections.abc import Sequence

from benchmarks import commands, flops
from dit_jax.errors import UserError

DEFAULTS = ("sample.sampler=ddim", "sample.steps=10", "sample.guidance=2.0")


def main(argv: Sequence[str]) -> dict:
    """Measures and prints; returns what `--out` stores."""
    made = commands.parser(__doc__ or "")
    made.set_defaults(batch="16", peers="torch,torch-compile,torch-tuned,diffusers")
    flags, assignments = commands.parse(made, argv)
    return commands.run("sample", flags, [*DEFAULTS, *assignments], "sample.batch_size", count)


def count(made: commands.Experiment) -> int:
    """Returns the FLOPs of one image's products. Raises UserError if steps differ in their cost."""
    c = made.config.sample
    for key, value in {"guidance_from": 0.0, "guidance_to": 1.0, "classifier_scale": 0.0}.items():
        if c[key] != value:
            raise UserError(f"sample.{key}={c[key]}: its cost is not counted here; use {value}")
    evaluations = len(made.plan().t)
    return flops.sampling(made.model, made.info.image_shape, evaluations, guided=c.guidance not in (0, 1))


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
