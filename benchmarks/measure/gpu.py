"""The full network on a GPU as PyTorch runs it best, and the time that a GPU takes.

No widths and no agent: convolutions are cuDNN's, in bfloat16, channels last, normalisation folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.bundle import Bundle
from models.layers import FoldedConv
from models.weights import load

Key = TypeVar("Key")
# Below this the host's launches would be measured.
LEAST_MS = 20.0


class _Whole(nn.Module):
    """A folded convolution for the whole input, in place of one that slices."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: FoldedConv) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight[-1].clone())
        self.register_buffer("bias", conv.bias[-1].clone())
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor, in_width: int, channels: int) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


def full_network(
    bundle: Bundle, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """A function from images (N, 3, H, W), channels last, to logits (N, classes)."""
    backbone = bundle.card.backbone
    network = load(backbone, bundle.card.agent, bundle.tensors)
    for convs in (network.convs._modules, network.projections._modules):
        for name, conv in convs.items():
            assert isinstance(conv, FoldedConv)
            convs[name] = _Whole(conv)
    network = network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = [backbone.groups] * backbone.n_layers

    def run(images: Tensor) -> Tensor:
        logits: Tensor = network(images, path)
        return logits

    return run


def device_ms(
    works: Mapping[Key, list[tuple[Callable[[], object], Callable[[], object]]]], rounds: int
) -> dict[Key, npt.NDArray[np.float64]]:
    """Milliseconds (rounds,) that works take on the GPU, in turn within every round.

    Args:
        works: each as parts of (what to do before, which is not timed; what is timed).
    """
    repeats = {key: _repeats(parts) for key, parts in works.items()}
    found: dict[Key, list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, parts in works.items():
            found[key].append(_timed(parts, repeats[key]))
    return {key: np.array(values) for key, values in found.items()}


def _repeats(parts: list[tuple[Callable[[], object], Callable[[], object]]]) -> int:
    _timed(parts, 3)
    return max(1, round(LEAST_MS * len(parts) / _timed(parts, 3)))


def _timed(parts: list[tuple[Callable[[], object], Callable[[], object]]], repeats: int) -> float:
    """Milliseconds of all parts, each the mean of its repetitions."""
    total = 0.0
    for before, work in parts:
        before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()  # type: ignore[no-untyped-call]
        for _ in range(repeats):
            work()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        total += start.elapsed_time(end) / repeats  # type: ignore[no-untyped-call]
    return total
