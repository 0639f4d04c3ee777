"""What every contestant's process does: read what to build, report that it is ready, and run on request.

Each contestant is a separate process because allocators, thread pools and compilers are per process. A line on stdin
asks for a number of units of work (train steps, or batches to sample); a line on stdout is an answer in JSON.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_IMAGES = 50_000  # as many as CIFAR-10 has; random, as no speed here depends on their content


def read_spec() -> dict[str, Any]:
    """Returns the only argument, and replaces stdout by one into which no library can print."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return json.loads(sys.argv[1])


def random_data(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [n, H, W, C] and labels int64 [n]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, *spec["image_shape"]), dtype=np.uint8)
    return images, rng.integers(0, spec["num_classes"], NUM_IMAGES)


def serve(
    told: dict[str, Any], run: Callable[[int], Any], wait: Callable[[], None], peak_bytes: Callable[[], int]
) -> None:
    """Answers `told`, then to each line with a number of units their seconds and the peak memory, until stdin ends."""
    print(json.dumps(told), file=sys.stdout)
    for line in sys.stdin:
        begin = time.perf_counter()
        run(int(line))
        wait()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), file=sys.stdout)


def peak_resident_bytes() -> int:
    """Returns the peak memory of this process. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_size(platform: str) -> int:
    """Returns the side of the square matrices with which the machine's peak is measured."""
    return 2048 if platform == "cpu" else 8192


def best_rate(product: Callable[[], Any], wait: Callable[[Any], Any], flops: float) -> float:
    """Returns the fastest of 10 timings of a product, in FLOP/s; on a fast device, each times many of them."""
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
