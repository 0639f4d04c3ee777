"""Runs a PyTorch contestant in its own process: the same train step or sampling loop as ours, in plain PyTorch."""

# pyright: reportMissingImports=false

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import contestant
from benchmarks.torch_dit import NETWORKS

NETWORK_KEYS = (
    "image_shape",
    "num_classes",
    "patch_size",
    "width",
    "depth",
    "num_heads",
    "num_kv_heads",
    "mlp_ratio",
    "class_table_width",
)


def make_network(spec: dict[str, Any], device: torch.device) -> torch.nn.Module:
    """Builds the network that `spec` asks for, with weights from which training could start."""
    torch.manual_seed(0)
    network = NETWORKS[spec["network"]](**{key: spec[key] for key in NETWORK_KEYS})
    return network.to(device)


def autocast(spec: dict[str, Any], device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which products are in bfloat16 if ours are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=spec["dtype"] == "bfloat16")


def make_train(spec: dict[str, Any], device: torch.device) -> Callable[[int], None]:
    """Returns run(steps) of whole train steps: data, flips, noise, dropped labels, loss, clipping, AdamW, average.

    The hyperparameters are the report's; none of them affects the speed.
    """
    network = make_network(spec, device)
    average = [p.detach().clone() for p in network.parameters()]
    parameters = list(network.parameters())
    fused = spec["tuned"] or device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=1e-4, fused=True if fused else None)
    images, labels = (torch.from_numpy(array).to(device) for array in contestant.random_data(spec))
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(device)
    batch_size, null_class = spec["batch_size"], spec["num_classes"]

    def loss_of(x_t: torch.Tensor, t: torch.Tensor, seen: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        with autocast(spec, device):
            predicted = network(x_t, t, seen)
        return F.mse_loss(predicted.float(), eps)

    loss_of = torch.compile(loss_of) if spec["compile"] else loss_of

    def step() -> None:
        chosen = torch.randint(len(images), (batch_size,), device=device)
        x_0 = images[chosen].float().permute(0, 3, 1, 2) / 127.5 - 1
        flipped = torch.rand(batch_size, 1, 1, 1, device=device) < 0.5
        x_0 = torch.where(flipped, x_0.flip(3), x_0)
        t = torch.randint(1000, (batch_size,), device=device)
        dropped = torch.rand(batch_size, device=device) < 0.1
        seen = torch.where(dropped, null_class, labels[chosen])
        eps = torch.randn_like(x_0)
        share = alpha_bar[t][:, None, None, None]
        loss = loss_of(share.sqrt() * x_0 + (1 - share).sqrt() * eps, t, seen, eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    return lambda steps: [step() for _ in range(steps)].clear()


def make_sample(spec: dict[str, Any], device: torch.device) -> Callable[[int], None]:
    """Returns run(batches) of DDIM over `sampler_steps` timesteps, with guidance in one doubled pass."""
    network = make_network(spec, device).eval()
    network = torch.compile(network) if spec["compile"] else network
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(device)
    timesteps = np.linspace(999, 0, spec["sampler_steps"]).round().astype(int).tolist()
    B, guidance = spec["batch_size"], spec["guidance"]
    height, width, channels = spec["image_shape"]
    labels = torch.arange(B, device=device) % spec["num_classes"]
    no_class = torch.full_like(labels, spec["num_classes"])

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        if guidance in (0, 1):
            with autocast(spec, device):
                return network(x, torch.full((B,), t, device=device), labels if guidance else no_class).float()
        both = torch.cat([labels, no_class])
        with autocast(spec, device):
            doubled = network(torch.cat([x, x]), torch.full((2 * B,), t, device=device), both).float()
        with_label, without = doubled.chunk(2)
        return without + guidance * (with_label - without)

    @torch.inference_mode()
    def batch() -> torch.Tensor:
        x = torch.randn(B, channels, height, width, device=device)
        for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
            eps = predict(x, t)
            now, later = (alpha_bar[i] if i >= 0 else torch.ones((), device=device) for i in (t, following))
            x_0 = ((x - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
            x = later.sqrt() * x_0 + (1 - later).sqrt() * (x - now.sqrt() * x_0) / (1 - now).sqrt()
        return x

    return lambda batches: [batch() for _ in range(batches)].clear()


def matmul_rate(dtype: str, device: torch.device, size: int) -> float:
    """Returns the best FLOP/s of a product of two square matrices."""
    kind = getattr(torch, dtype)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return contestant.best_rate(lambda: a @ b, lambda _: wait(device), 2 * size**3)


def wait(device: torch.device) -> None:
    """Waits until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: torch.device) -> int:
    """Returns the peak memory of the tensors on a GPU, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else contestant.peak_resident_bytes()


def main() -> None:
    """Answers the requests of contest.py."""
    spec = contestant.read_spec()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make = {"train": make_train, "sample": make_sample}[spec["task"]]
    begin = time.perf_counter()
    run = make(spec, device)
    made = time.perf_counter() - begin
    run(1)
    wait(device)
    told = {
        "start_s": made,
        "compile_s": time.perf_counter() - begin - made,
        "version": torch.__version__,
        "matmul_flops": matmul_rate(spec["dtype"], device, contestant.matmul_size(device.type)),
    }
    contestant.serve(told, run, lambda: wait(device), lambda: peak_bytes(device))


if __name__ == "__main__":
    main()
