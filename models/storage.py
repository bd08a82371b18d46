"""How a bundle's file holds weights: in fewer bits than it takes to compute with them. No torch.

float16   each weight of a convolution or linear layer, rounded
int8      a byte for each weight of a convolution, and for each of its output channels, as
          `<layer>.step` (float32), what a byte counts: weight = byte · step; the largest weight of
          a channel is 127 steps. Linear layers, which no normalisation follows, as above.

The agent's and the normalisation's values are few, and widths hang on them: they stay float32.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]
Storage = Literal["float16", "int8"]

_MOST = 127
_WEIGHT, _STEP = ".weight", ".step"


def pack(tensors: Tensors, storage: Storage) -> Tensors:
    """A bundle's tensors as its file holds them."""
    packed: Tensors = {}
    for name, value in tensors.items():
        if not name.endswith(_WEIGHT) or name.startswith("agent."):
            packed[name] = value
        elif storage == "int8" and value.ndim == 4:
            step = _per_filter(np.abs(value).max(axis=(1, 2, 3))) / np.float32(_MOST)
            # A filter that is all zero has steps of any size.
            step[step == 0] = 1
            packed[name] = np.rint(value / step).astype(np.int8)
            packed[name.removesuffix(_WEIGHT) + _STEP] = step.ravel()
        else:
            packed[name] = value.astype(np.float16)
    return packed


def unpack(packed: Tensors) -> Tensors:
    """The tensors that a file holds, as they are computed with.

    Raises:
        ValueError: bytes whose steps are missing, or are not one for each output channel.
    """
    tensors = dict(packed)
    for name, value in packed.items():
        if value.dtype == np.int8:
            step = tensors.pop(name.removesuffix(_WEIGHT) + _STEP, None)
            if step is None or step.shape != value.shape[:1]:
                raise ValueError(f"tensor {name} is of bytes, without a step for each channel")
            tensors[name] = value * _per_filter(step)
    return tensors


def _per_filter(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(O,) as (O, 1, 1, 1)."""
    return values[:, None, None, None]
