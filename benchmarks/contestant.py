"""What every contestant's process does: read what to build, say that it is ready, and run when told to.

The two sides are processes of their own because allocators, thread pools and compilers are: each line on stdin asks for
so many units of work (train steps, or batches to sample), each line on stdout is an answer in JSON.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_IMAGES = 50_000  # as CIFAR-10 has; random ones, for no speed here depends on what they show


def read_spec() -> dict[str, Any]:
    """The only argument, and a stdout that no library can print into."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return json.loads(sys.argv[1])


def random_data(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, H, W, C] and labels int64 [n]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, *spec["image_shape"]), dtype=np.uint8)
    return images, rng.integers(0, spec["num_classes"], NUM_IMAGES)


def serve(
    told: dict[str, Any], run: Callable[[int], Any], wait: Callable[[], None], peak_bytes: Callable[[], int]
) -> None:
    """Answers `told`, then for each line with a number of units the seconds they took, until stdin ends."""
    print(json.dumps(told), file=sys.stdout)
    for line in sys.stdin:
        begin = time.perf_counter()
        run(int(line))
        wait()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), file=sys.stdout)


def peak_resident_bytes() -> int:
    """The most memory this process had. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_size(platform: str) -> int:
    """Side of the square matrices that the machine's peak is measured with."""
    return 2048 if platform == "cpu" else 8192


def best_rate(product: Callable[[], Any], wait: Callable[[Any], Any], flops: float) -> float:
    """The fastest of 10 timings of a product, FLOP/s; on a fast device many are timed together."""
    wait(product())
    begin = time.perf_counter()
    wait(product())
    count = max(1, int(0.05 / (time.perf_counter() - begin)))
    rates = []
    for _ in range(10):
        begin = time.perf_counter()
        results = [product() for _ in range(count)]
        wait(results[-1])
        rates.append(count * flops / (time.perf_counter() - begin))
    return max(rates)
