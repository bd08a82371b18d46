"""How well does supernet training use the processor?

    python -m benchmarks.training [--backbone NAME] [--width W] [--image-size S] [--batch N]

Times steps of the supernet's stage on random images, on one thread: full, narrowest and one random
path, forwards and backwards, each really sliced. The peak is what a large bfloat16 matrix product
reaches in the same minute. Prints a table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from models import backbones
from models.compute import path_macs
from models.network import Network
from training.batches import generator
from training.supernet import backward, sandwich, sgd, update

# Forwards, and backwards to the weights and to the input.
PASSES = 3
MATRIX = 2048


@dataclass(frozen=True)
class Report:
    """Speeds of one thread, in multiply-accumulates (MACs) a second."""

    backbone: str
    machine: str
    images_per_second: float
    macs_per_second: float
    peak_macs_per_second: float

    @property
    def share(self) -> float:
        """Share of the peak."""
        return self.macs_per_second / self.peak_macs_per_second


def measure(backbone: str, width: float, image_size: int | None, batch: int, steps: int) -> Report:
    """Time steps of the supernet's stage, and a matrix product."""
    torch.set_num_threads(1)
    network = Network(backbones.build(backbone, 10, width=width, image_size=image_size)).train()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, side = sgd(network, 0.01, 5e-4), network.backbone.image_size
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    steps_paths = [sandwich(network.backbone, 1, generator(0, step)) for step in range(steps)]

    def step(paths: list[list[int]]) -> None:
        autocast = torch.autocast("cpu", torch.bfloat16)
        backward(network, images, labels, paths, smoothing=0.1, autocast=autocast)
        update(optimizer)

    step(steps_paths[0])
    seconds = timed(lambda: [step(paths) for paths in steps_paths])
    paths = np.concatenate([np.array(paths) for paths in steps_paths])
    macs = PASSES * batch * int(path_macs(paths, network.table, agent=False).sum())
    name = f"{backbone} × {width:g}, {side}²"
    return Report(name, platform.machine(), steps * batch / seconds, macs / seconds, peak())


def peak() -> float:
    """MACs a second of a large bfloat16 matrix product."""
    a = torch.randn(MATRIX, MATRIX).bfloat16()
    a @ a
    return MATRIX**3 / min(timed(lambda: a @ a) for _ in range(5))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="mcifarnet", choices=sorted(backbones.BACKBONES))
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", help=argparse.SUPPRESS)  # `make bench` gives it to all
    flags = parser.parse_args()
    report = measure(flags.backbone, flags.width, flags.image_size, flags.batch, flags.steps)
    print("| network | images a second | GMAC a second | share of a matrix product's |")
    print("|---|---|---|---|")
    print(
        f"| {report.backbone} | {report.images_per_second:.0f} "
        f"| {report.macs_per_second / 1e9:.0f} | {report.share:.0%} |"
    )
    print(json.dumps({**asdict(report), "share": report.share}))


if __name__ == "__main__":
    main()
