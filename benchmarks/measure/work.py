"""What is timed: an engine, at images and with caps that make them spend a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from models.bundle import Bundle
from service import costs
from service.engines import create_engine
from service.engines.base import Engine, Floats

Kind = Literal["auto", "onnx", "torch", "triton"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def engine_of(bundle: Bundle, kind: Kind, threads: int, cache_dir: Path) -> Engine:
    """The engine that runs a bundle, whose name may differ from what was asked for.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"engine {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    return create_engine(bundle, kind, threads=threads, cache_dir=cache_dir)


def noise(bundle: Bundle, rows: int) -> Floats:
    """Images (rows, 3, H, W)."""
    size = bundle.card.preprocessing.size
    return np.random.default_rng(0).normal(size=(rows, 3, size, size)).astype(np.float32)


def at_budget(
    engine: Engine, bundle: Bundle, images: Floats, budget: float, batch: int
) -> tuple[Callable[[], object], float]:
    """Running images in batches at a budget, and the share of the full MACs that they spend."""
    penalty, cap, fraction = costs.rows_at(bundle.card.table(), budget, len(images))
    parts = [(images[p], penalty[p], cap[p]) for p in costs.batches(len(images), batch)]
    return lambda: [engine.run(*part) for part in parts], fraction
