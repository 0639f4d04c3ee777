"""Compares our training speed and PyTorch's, in turns on this machine.

    python -m benchmarks.train                       # the report's model, batch 16 and 64, float32 and bfloat16
    python -m benchmarks.train --batch=256 --dtype=bfloat16 --peers=torch-compile --out=train.json
    python -m benchmarks.train --peers= --config=configs/cifar10.py:best

Random images replace the data, so nothing is downloaded. The peers need requirements-peers.txt.
"""

import sys
from collections.abc import Sequence

from benchmarks import commands, flops


def main(argv: Sequence[str]) -> dict:
    """Measures and prints; returns what `--out` stores."""
    flags, assignments = commands.parse(commands.parser(__doc__ or ""), argv)
    count = lambda made: flops.training(made.model, made.info.image_shape)  # noqa: E731
    return commands.run("train", flags, assignments, "train.batch_size", count)


if __name__ == "__main__":
    sys.exit(commands.guarded(main))
