"""Where the tests of Triton's kernels run, and how to make that fast enough in its interpreter."""

from __future__ import annotations

import dataclasses

import torch
import triton
from triton.runtime import interpreter

from service.engines.triton_tuning import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)
DEVICE = "cpu" if INTERPRETED else "cuda"
# An operation takes the interpreter about as long on a large tile.
TILE = Tile(1024, 64, 256) if INTERPRETED else Tile()

# What is compared with computes in float32, too.
torch.backends.cudnn.allow_tf32 = False
if INTERPRETED:
    # A check of every integer operation, which more than doubles their time.
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options, sanitize_overflow=False
    )


def widths(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def unread(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Memory that spoils whatever reads it."""
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)
