"""What the service asks of an engine; routes and batcher know nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """Answers for N images, same order as asked.

    Attributes:
        logits: (N, C) float32.
        widths: (N, L) int64, groups computed per layer along the path that gave the answer.
        macs: (N,) int64, multiply-accumulates of all that was computed, the agent included.
    """

    logits: Floats
    widths: Integers
    macs: Integers


class Engine(Protocol):
    """Runs one bundle on one kind of hardware."""

    name: str

    def run(self, images: Floats, penalty: Floats, cap: npt.NDArray[np.float64]) -> Result:
        """Classify images, each by its own penalty and cap.

        Args:
            images: (N, 3, H, W) float32, preprocessed; their memory is the caller's again after.
            penalty: (N,) float32, price of compute; below 0 compute is spent even where it is not
                expected to help. A row with penalty 0 and a cap of 1 or more runs the plain
                network: the agent is not consulted, its MACs are the full network's.
            cap: (N,) float64, share of the full MACs that a row never exceeds, infinite for none;
                not below the bundle's `min_cap`.
        """
        ...
