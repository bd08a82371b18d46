"""Engines: each runs a bundle on one kind of hardware, all by the contract in `base`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from models.bundle import Bundle
from service.engines.base import Engine

# ONNX Runtime reports its use to its makers unless told not to before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class EngineError(RuntimeError):
    """An engine whose libraries are not installed."""


def create_engine(
    bundle: Bundle, kind: Literal["auto", "onnx", "torch"], *, threads: int, cache_dir: Path
) -> Engine:
    """Make the engine that runs a bundle; "auto" takes the fastest on a CPU.

    Raises:
        EngineError: what the engine needs is not installed.
    """
    try:
        engine = _create(bundle, kind, threads, cache_dir)
    except ImportError as error:
        raise EngineError(f"engine {kind!r} cannot be loaded: {error}") from error
    _warm_up(engine, bundle)
    return engine


def _warm_up(engine: Engine, bundle: Bundle) -> None:
    """Run the plain network and a path, or the first requests would wait for buffers to be made."""
    size = bundle.card.preprocessing.size
    images = np.zeros((2, 3, size, size), np.float32)
    penalty = bundle.card.calibration[-1].penalty
    engine.run(images, np.array([0, penalty], np.float32), np.ones(2))


def _create(bundle: Bundle, kind: str, threads: int, cache_dir: Path) -> Engine:
    # Imported here, as only the chosen engine's libraries need be installed.
    if kind == "torch":
        from service.engines.reference import TorchEngine

        return TorchEngine(bundle, threads=threads)
    from service.engines.onnx_graph import OnnxEngine

    return OnnxEngine(bundle, threads=threads, cache_dir=cache_dir)
