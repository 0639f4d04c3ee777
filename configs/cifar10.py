"""CIFAR-10.

`report`: the student report's recipe: 19.1 M parameters, token conditioning, noise prediction with linear betas, AdamW
at 2e-4, 200 epochs at batch 256. Ours beside it: averaged weights, label dropout, flips and gradient clipping.

    python main.py --config configs/cifar10.py:report --workdir runs/cifar10

Needs the data: see README, "CIFAR-10". Measured so far: results/cifar10_report_cpu, the loss over a third of an epoch;
the 200 epochs have not been run.
"""

from ml_collections import ConfigDict

from configs import default
from dit_jax.errors import UserError


def get_config(recipe: str = "report") -> ConfigDict:
    if recipe != "report":
        raise UserError(f"configs/cifar10.py has no recipe '{recipe}'; use configs/cifar10.py:report")
    return default.get_config().lock()
