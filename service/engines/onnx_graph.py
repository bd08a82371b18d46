"""The CPU engine: a bundle as ONNX graphs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.bundle import Bundle
from models.compute import cap_macs, path_macs, path_price
from service.engines.base import Floats, Integers, Result
from service.engines.onnx_builder import glance_graph, path_graph, pruned_graph
from service.engines.onnx_cache import Build, graph_file

# Makes a session of a graph, which has this name in the cache.
Load = Callable[[str, Build], ort.InferenceSession]


class OnnxEngine:
    """Runs a bundle with ONNX Runtime: plain rows as one batch, others as the agent chooses."""

    name = "onnx"

    def __init__(
        self, bundle: Bundle, threads: int | None = None, cache_dir: Path | None = None
    ) -> None:
        """Build the graphs, or take them from the cache.

        Args:
            threads: that one operation may use; by default as many as there are cores.
            cache_dir: where built graphs are kept for the next start; by default nowhere.
        """
        self._layers = bundle.card.backbone.n_layers
        self._classes = bundle.card.backbone.classes
        self._table = bundle.card.table()
        load = partial(_session, bundle, threads, cache_dir)
        self._plain = _along(load, [self._table.groups] * self._layers)
        self._pruned: _Pruned = (_ByPath if bundle.card.agent.paths else _ByLayer)(bundle, load)

    def run(self, images: Floats, penalty: Floats, cap: npt.NDArray[np.float64]) -> Result:
        """Classify images, each by its own penalty and cap; see `Engine.run`."""
        n, k = len(images), self._table.groups
        logits = np.empty((n, self._classes), np.float32)
        widths = np.full((n, self._layers), k, np.int64)
        macs = np.full(n, self._table.full, np.int64)
        plain = (penalty == 0) & (cap >= 1)
        if plain.any():
            (logits[plain],) = self._plain.run(["logits"], {"image": images[plain]})
        if not plain.all():
            rows = ~plain
            limits = cap_macs(cap[rows], self._table.full)
            logits[rows], widths[rows] = self._pruned.run(images[rows], penalty[rows], limits)
            macs[rows] = path_macs(widths[rows], self._table, agent=True)
        return Result(logits, widths, macs)


class _Pruned(Protocol):
    """Runs images along the paths that an agent chooses."""

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> tuple[Floats, Integers]:
        """Logits (N, C) and widths (N, L) of images, penalties (N,) and most MACs (N,)."""
        ...


class _ByPath:
    """One glance at all images, then those that chose a path as one batch along it."""

    def __init__(self, bundle: Bundle, load: Load) -> None:
        table, self._paths = bundle.card.table(), np.array(bundle.card.agent.paths, np.int64)
        self._macs = path_macs(self._paths, table, agent=True)
        self._price = path_price(table, self._paths)
        self._glance = load("glance", glance_graph)
        self._others = [_along(load, path) for path in self._paths[1:].tolist()]

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> tuple[Floats, Integers]:
        logits, gain = self._glance.run(["logits", "gain"], {"image": images})
        chosen = self._choose(gain, penalty, limits)
        for number, session in enumerate(self._others, start=1):
            here = chosen == number
            if here.any():
                (logits[here],) = session.run(["logits"], {"image": images[here]})
        return logits, self._paths[chosen]

    def _choose(self, gain: Floats, penalty: Floats, limits: Integers) -> Integers:
        """Number (N,) of the best path that the MACs allow; the first is always allowed."""
        values = np.pad(gain, ((0, 0), (1, 0))) - penalty[:, None] * self._price
        allowed = self._macs <= limits[:, None]
        allowed[:, 0] = True
        best: Integers = np.where(allowed, values, -np.inf).argmax(axis=1)
        return best


class _ByLayer:
    """Each image by itself, the agent inside the graph."""

    def __init__(self, bundle: Bundle, load: Load) -> None:
        self._session = load("pruned", pruned_graph)

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> tuple[Floats, Integers]:
        answers = [
            self._session.run(
                ["logits", "widths"],
                {
                    "image": image[None],
                    "penalty": penalty[n : n + 1],
                    "cap_macs": limits[n : n + 1],
                },
            )
            for n, image in enumerate(images)
        ]
        logits, widths = zip(*answers, strict=True)
        return np.concatenate(logits), np.stack(widths)


def _along(load: Load, path: list[int]) -> ort.InferenceSession:
    name = "-".join(["path", *map(str, path)])
    return load(name, partial(path_graph, path=path))


def _session(
    bundle: Bundle, threads: int | None, cache_dir: Path | None, name: str, build: Build
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Idle threads would otherwise spin on, on the cores that decoding and HTTP need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Branches of an `If` differ in shape, about which the runtime would warn.
    options.log_severity_level = 3
    with graph_file(bundle, name, build, cache_dir) as path:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
