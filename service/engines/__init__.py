"""Engines: each runs a bundle on one kind of hardware, all by the contract in `base`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np

from models.bundle import Bundle
from service.engines.base import Engine, every_way

# ONNX Runtime reports its use to its makers unless told not to before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine whose libraries are not installed."""


def create_engine(
    bundle: Bundle,
    kind: Literal["auto", "onnx", "torch", "triton"],
    *,
    threads: int,
    cache_dir: Path,
) -> Engine:
    """Make the engine that runs a bundle.

    "auto" is "onnx". Where "triton" cannot run, the log says why and "torch" runs instead.

    Raises:
        EngineError: what the engine needs is not installed.
    """
    try:
        engine = _create(bundle, kind, threads, cache_dir)
    except ImportError as error:
        raise EngineError(f"engine {kind!r} cannot be loaded: {error}") from error
    warm_up(engine, bundle)
    return engine


def warm_up(engine: Engine, bundle: Bundle) -> None:
    """Run the plain network and every path, or the first requests would wait for buffers."""
    size, (penalty, cap) = bundle.card.preprocessing.size, every_way(bundle.card.table())
    engine.run(np.zeros((len(cap), 3, size, size), np.float32), penalty, cap)


def _create(bundle: Bundle, kind: str, threads: int, cache_dir: Path) -> Engine:
    # Imported here, as only the chosen engine's libraries need be installed.
    if kind == "triton":
        try:
            from service.engines.triton_engine import TritonEngine, check, check_answers

            check(bundle)
            engine = TritonEngine(bundle, cache_dir)
            check_answers(engine, bundle)
            return engine
        except Exception as error:  # drivers, compilers and memory fail in ways of their own
            kind = "torch"
            log.warning(
                "engine 'triton' cannot run %s: %s; %r runs instead", bundle.card.name, error, kind
            )
    if kind == "torch":
        from service.engines.reference import TorchEngine

        return TorchEngine(bundle, threads=threads)
    from service.engines.onnx_graph import OnnxEngine

    return OnnxEngine(bundle, threads=threads, cache_dir=cache_dir)
