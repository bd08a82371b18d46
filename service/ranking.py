"""From logits to probabilities and an order of classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.preprocess import Floats


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Softmax of one image's logits: (C,) to (C,)."""
    # By the ufuncs themselves: of a few classes, the methods around them take most of the time.
    powers = np.exp(logits.astype(np.float64) - np.maximum.reduce(logits))
    shares: npt.NDArray[np.float64] = powers / np.add.reduce(powers)
    return shares


def ranking(logits: Floats, top_k: int) -> list[int]:
    """Indices of the `top_k` largest of (C,) logits, largest first; of equals the first."""
    order: list[int] = (-logits).argsort(kind="stable")[:top_k].tolist()
    return order
