"""How well does training use the machine?

    python -m benchmarks.training [--backbone NAME] [--width W] [--image-size S] [--batch N]
                                  [--device cpu|cuda]

Times steps on random images, on one thread of a CPU or on a GPU: "supernet" sends each batch along
the full network, the narrowest and one random path, which is another in each step; "paths" along
the full network, the narrowest and two paths that stay the same, as fine-tuning does. Each is
really sliced, forwards and backwards. The peak is what a large bfloat16 matrix product reaches in
the same minute. On a GPU each is timed with and without CUDA graphs. Prints a table and ends in
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.measure.processor import processor_name
from models import backbones
from models.compute import path_macs
from models.network import Network
from training.backward import Backward
from training.batches import generator
from training.run import channels_last
from training.supernet import sandwich, sgd, update

# Forwards, and backwards to the weights and to the input.
PASSES = 3
# Sides of the matrices whose product shows the peak.
MATRIX = {"cpu": 2048, "cuda": 8192}
# Before the clock starts; paths that stay the same are captured by then.
WARM = 5


@dataclass(frozen=True)
class Report:
    """Speeds, in multiply-accumulates (MACs) a second.

    Attributes:
        steps: "supernet" or "paths".
        captured: whether recurring paths are CUDA graphs.
    """

    backbone: str
    steps: str
    batch: int
    captured: bool
    machine: str
    images_per_second: float
    macs_per_second: float
    peak_macs_per_second: float

    @property
    def share(self) -> float:
        """Share of the peak."""
        return self.macs_per_second / self.peak_macs_per_second


def measure(flags: argparse.Namespace, steps: str, *, captured: bool) -> Report:
    """Time steps of one kind, and a matrix product."""
    device, batch = torch.device(flags.device), flags.batch
    name, width, size = flags.backbone, flags.width, flags.image_size
    network = Network(backbones.build(name, 10, width=width, image_size=size)).train()
    network = channels_last(network.to(device))
    optimizer, side = sgd(network, 0.01, 5e-4), network.backbone.image_size
    images = torch.randn(batch, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    kinds = sandwich(network.backbone, 2, generator(0))
    sandwiches = [
        kinds if steps == "paths" else sandwich(network.backbone, 1, generator(0, step))
        for step in range(WARM + flags.steps)
    ]
    autocast = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    backward = Backward(network, smoothing=0.1, autocast=autocast, capture=captured)

    def run(some: list[list[list[int]]]) -> None:
        for paths in some:
            backward(images, labels, paths)
            update(optimizer)

    run(sandwiches[:WARM])
    timed_steps = sandwiches[WARM:]
    seconds = timed(lambda: run(timed_steps), device)
    paths = np.concatenate([np.array(paths) for paths in timed_steps])
    macs = PASSES * batch * int(path_macs(paths, network.table, agent=False).sum())
    return Report(
        f"{name} × {width:g}, {side}²",
        steps,
        batch,
        captured,
        torch.cuda.get_device_name() if device.type == "cuda" else processor_name(),
        len(timed_steps) * batch / seconds,
        macs / seconds,
        peak(device),
    )


def peak(device: torch.device) -> float:
    """MACs a second of a large bfloat16 matrix product."""
    side = MATRIX[device.type]
    a = torch.randn(side, side, device=device).bfloat16()
    a @ a
    return side**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="mcifarnet", choices=sorted(backbones.BACKBONES))
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--data", help=argparse.SUPPRESS)  # `make bench` gives it to all
    flags = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | steps | batch | CUDA graphs | images a second | TMAC a second "
          "| share of a matrix product's |\n|---|---|---|---|---|---|---|")  # fmt: skip
    reports = []
    for steps in ("supernet", "paths"):
        for captured in (False, True) if flags.device == "cuda" else (False,):
            report = measure(flags, steps, captured=captured)
            reports.append(asdict(report) | {"share": report.share})
            print(f"| {report.backbone} | {steps} | {report.batch} "
                  f"| {'yes' if captured else 'no'} | {report.images_per_second:.0f} "
                  f"| {report.macs_per_second / 1e12:.3g} | {report.share:.0%} |",
                  flush=True)  # fmt: skip
    print(json.dumps({"benchmark": "training", "reports": reports}))


if __name__ == "__main__":
    main()
