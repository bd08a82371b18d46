"""Engines: each runs a bundle on one kind of hardware, all by the contract in `base`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

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
        return _create(bundle, kind, threads, cache_dir)
    except ImportError as error:
        raise EngineError(f"engine {kind!r} cannot be loaded: {error}") from error


def _create(bundle: Bundle, kind: str, threads: int, cache_dir: Path) -> Engine:
    # Imported here, as only the chosen engine's libraries need be installed.
    if kind == "torch":
        from service.engines.reference import TorchEngine

        return TorchEngine(bundle, threads=threads)
    from service.engines.onnx_graph import OnnxEngine

    return OnnxEngine(bundle, threads=threads, cache_dir=cache_dir)
