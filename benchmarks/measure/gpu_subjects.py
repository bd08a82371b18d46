"""What `benchmarks.gpu_check` measures: networks with random weights, the engine, and its rivals.

Imports of Triton are put off until it is settled whether it interprets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.bundle import Bundle
    from service.engines.base import Floats
    from service.engines.triton_engine import TritonEngine

NETWORKS = ("mcifarnet-32", "vgg16-32", "resnet18-160", "vgg16-224")
TOY = "toy"


def bundle_of(name: str) -> Bundle:
    """A network with random weights and an agent of five paths."""
    from benchmarks import engines
    from benchmarks.measure.bundles import random_bundle

    if name == TOY:
        return random_bundle("mcifarnet", 4, width=0.125, image_size=12)
    backbone, classes, size = engines.NETWORKS[name]
    return random_bundle(backbone, classes, image_size=size)


def engine_of(flags: argparse.Namespace, bundle: Bundle, dtype: str, *batches: int) -> TritonEngine:
    """The engine; float32 is not tuned, as only its answers matter."""
    import torch

    from service.engines.triton_engine import TritonEngine
    from service.engines.triton_tuning import Tile, Tuner

    tuner = Tuner(default=Tile(1024, 64, 256)) if flags.rehearse else None
    if dtype == "float32" and not tuner:
        tuner = Tuner()
    return TritonEngine(
        bundle,
        flags.out,
        device="cpu" if flags.rehearse else "cuda",
        dtype=getattr(torch, dtype),
        tuner=tuner,
        batches=batches,
    )


def rivals(
    flags: argparse.Namespace, bundle: Bundle, images: Floats
) -> dict[str, Callable[[], object]]:
    """The full network on images that are on the GPU already."""
    import torch

    from benchmarks.measure.gpu import full_network
    from service.engines.triton_engine import captured

    device = torch.device("cpu" if flags.rehearse else "cuda")
    network = full_network(bundle, device, torch.bfloat16)
    x = torch.from_numpy(images).to(device, torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    if flags.rehearse:
        return {"cudnn": lambda: network(x)}
    torch.backends.cudnn.benchmark = True
    found: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        if "cudnn" in flags.rivals:
            found["cudnn"] = captured(network, x)
        if "compiled" in flags.rivals:
            compiled = torch.compile(network, mode="max-autotune")
            found["compiled"] = lambda: compiled(x)
    return found
