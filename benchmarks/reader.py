"""Measures how fast batches are read from disk, without training: images/s of a streamed data set.

    python -m benchmarks.reader --data_dir data [--name shapes] [--batch_size 256] [--seconds 10]

The first batches, which fill the buffers, are not counted.
"""

import argparse
import time

import jax
import numpy as np

from dit_jax.data import datasets
from dit_jax.data.stream import Reader, batches, threads_here

REPEATS = 3
STEPS_PER_CALL = 8  # training reads so far ahead, plus a batch per thread (configs/default.py)


def measure(records: datasets.Records, batch_size: int, threads: int, seconds: float) -> float:
    """Returns the images/s of one reader, without its first batches."""
    read = batches(records, jax.random.key(0), batch_size, np.arange(batch_size))
    ahead = STEPS_PER_CALL + threads
    reader, warm = Reader(read, 2**31 - 1, ahead=ahead, threads=threads), 2 * ahead
    for step in range(warm):
        reader.batch(step)
    step, start = warm, time.perf_counter()
    while time.perf_counter() - start < seconds:
        reader.batch(step)
        step += 1
    rate = (step - warm) * batch_size / (time.perf_counter() - start)
    reader.close()
    return rate


def main() -> None:
    """Prints the speeds with one thread and with the threads that training uses here, one per core up to 16."""
    parser = argparse.ArgumentParser(description="Measures how fast batches are read from the disk.")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--name", default="shapes", choices=list(datasets.DATASETS))
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    records = datasets.open_split(datasets.Source(args.name, args.data_dir))
    for threads in sorted({1, threads_here()}):
        rates = [measure(records, args.batch_size, threads, args.seconds) for _ in range(REPEATS)]
        told = ", ".join(f"{rate:,.0f}" for rate in rates)
        print(f"{args.name} {records.image_shape}, batch {args.batch_size}, {threads} threads: {told} images/s")


if __name__ == "__main__":
    main()
