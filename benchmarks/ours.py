"""Runs ours as a contestant in its own process: the train call and the sampler, as main.py runs them."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks import contestant

MARK = time.perf_counter()  # before JAX is imported, so that `start_s` includes that


def make_experiment(spec: dict[str, Any]) -> Any:
    """Builds the experiment of a config file and assignments."""
    from dit_jax.experiment import Experiment
    from dit_jax.settings import configs
    from dit_jax.settings.resolving import resolve

    config = configs.load(spec["config"])
    configs.override(config, spec["assignments"])
    return Experiment(resolve(config))


def make_train(experiment: Any, spec: dict[str, Any]) -> tuple[Callable[[int], Any], float]:
    """Returns (run(steps), seconds to trace and compile)."""
    import jax
    import numpy as np

    from dit_jax.training import loop, sharding

    call, state = experiment.train_call(), experiment.init_state()
    images, labels = contestant.random_data(spec)
    data = [sharding.put_replicated(array, experiment.mesh) for array in (images, labels.astype(np.int32))]
    begin = time.perf_counter()
    compiled = call.lower(state, loop.zero_sums(), *data, np.int32(1)).compile()
    seconds = time.perf_counter() - begin
    held, a_call = [state, loop.zero_sums()], experiment.config.train.steps_per_call

    def run(steps: int) -> None:
        """Runs steps like the training loop: one dispatch is in flight while the next is prepared."""
        running = None
        while steps > 0:
            now = min(steps, a_call)
            *held[:], reached = compiled(*held, *data, np.int32(now))
            if running is not None:
                jax.block_until_ready(running)
            steps, running = steps - now, reached
        jax.block_until_ready(held)

    return run, seconds


def make_sample(experiment: Any, spec: dict[str, Any]) -> tuple[Callable[[int], Any], float]:
    """Returns (run(batches), seconds to trace and compile: those of the first batch minus those of the second)."""
    import jax
    import numpy as np

    params, sample = jax.jit(experiment.init_params)(), experiment.sampler()
    labels = np.arange(spec["batch_size"]) % spec["num_classes"]

    def run(batches: int) -> None:
        for i in range(batches):
            jax.block_until_ready(sample(params, jax.random.key(i), labels))

    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        run(1)
        seconds.append(time.perf_counter() - begin)
    return run, seconds[0] - seconds[1]


def matmul_rate(dtype: str, size: int) -> float:
    """Returns the best FLOP/s of a product of two square matrices, summed in float32."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    return contestant.best_rate(lambda: product(a, b), jax.block_until_ready, 2 * size**3)


def peak_bytes() -> int:
    """Returns the peak memory of the arrays on one GPU, or of the process on a CPU."""
    import jax

    found = [device.memory_stats() for device in jax.devices()]
    return max((stats["peak_bytes_in_use"] for stats in found if stats), default=contestant.peak_resident_bytes())


def main() -> None:
    """Answers the requests of contest.py."""
    spec = contestant.read_spec()
    import jax

    from dit_jax.system import compilation

    compilation.use_cache()
    experiment = make_experiment(spec)
    run, compile_s = {"train": make_train, "sample": make_sample}[spec["task"]](experiment, spec)
    begin = time.perf_counter()
    run(1)
    told = {
        "start_s": begin - MARK,
        "compile_s": compile_s,
        "version": jax.__version__,
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "matmul_flops": matmul_rate(spec["dtype"], contestant.matmul_size(jax.devices()[0].platform)),
    }
    contestant.serve(told, run, lambda: None, peak_bytes)


if __name__ == "__main__":
    main()
