"""From logits to probabilities and an order of classes, for a whole batch at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.preprocess import Floats


def probabilities(logits: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax of each image's logits over a temperature: (N, C) to (N, C)."""
    values = logits.astype(np.float64)
    powers = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def rankings(logits: Floats) -> npt.NDArray[np.int64]:
    """Classes by each image's logits, largest first, of equals the first: (N, C) to (N, C)."""
    return np.argsort(-logits, axis=1, kind="stable")
