"""Compares training on resident and on streamed data, in turns: images/s of the demo's model.

    python -m benchmarks.streaming --data_dir data [--rounds 5]

It also says whether both runs end with the same state, as they should.
"""

import argparse
import os
import time

import jax
import numpy as np

from configs import shapes
from dit_jax.data import datasets
from dit_jax.experiment import Experiment
from dit_jax.settings.resolving import resolve
from dit_jax.training import loop


class Contestant:
    """A compiled training run whose data is resident or streamed."""

    def __init__(self, data_dir: str, resident: str):
        config = shapes.get_config()
        config.data.data_dir, config.data.resident = data_dir, resident
        self.experiment = Experiment(resolve(config))
        self.train = self.experiment.config.train
        self.feed = self.experiment.feed(datasets.open_split(self.experiment.source))
        self.state, self.sums, self.step = self.experiment.init_state(), loop.zero_sums(), 0
        call = self.experiment.train_call(self.feed.streamed)
        self.call = call.lower(self.state, self.sums, *self.feed.shapes, np.int32(1)).compile()

    def run(self, calls: int) -> float:
        """Returns the images/s over `calls` dispatches; like the loop, it waits for one while the next runs."""
        count, running, start = self.train.steps_per_call, None, time.perf_counter()
        for _ in range(calls):
            data = self.feed(self.step, self.step + count)
            self.state, self.sums, reached = self.call(self.state, self.sums, *data, np.int32(count))
            if running is not None:
                jax.block_until_ready(running)
            self.step, running = self.step + count, reached
        jax.block_until_ready(self.state)
        return calls * count * self.train.batch_size / (time.perf_counter() - start)


def main() -> None:
    """Prints each round, and whether both runs end with the same state."""
    parser = argparse.ArgumentParser(description="Compares training on resident and on streamed data.")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    runs = {name: Contestant(args.data_dir, name) for name in ("true", "false")}
    for run in runs.values():
        run.run(1)  # fills caches and buffers
    for _ in range(args.rounds):
        print("  ".join(f"data.resident={name}: {run.run(2):.1f} images/s" for name, run in runs.items()), flush=True)
    params = [jax.tree.leaves(jax.device_get(run.state)) for run in runs.values()]
    same = all(np.array_equal(a, b) for a, b in zip(*params, strict=True))
    print(f"the states are {'the same to the bit' if same else 'NOT the same'} after {runs['true'].step} steps")
    for run in runs.values():
        run.feed.close()
    print(f"{os.cpu_count()} CPU cores, {jax.device_count()} devices")


if __name__ == "__main__":
    main()
