"""The CPU engine: a bundle as two ONNX graphs, plain and with the agent inside. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.bundle import Bundle
from models.compute import cap_macs, path_macs
from service.engines.base import Floats, Integers, Result
from service.engines.onnx_builder import plain_graph, pruned_graph
from service.engines.onnx_cache import Build, graph_file


class OnnxEngine:
    """Runs a bundle with ONNX Runtime: plain rows as one batch, others each along its path."""

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
        self._plain = _session(bundle, plain_graph, threads, cache_dir)
        self._pruned = _session(bundle, pruned_graph, threads, cache_dir)

    def run(self, images: Floats, penalty: Floats, cap: npt.NDArray[np.float64]) -> Result:
        """Classify images, each by its own penalty and cap; see `Engine.run`."""
        n, k = len(images), self._table.groups
        logits = np.empty((n, self._classes), np.float32)
        widths = np.full((n, self._layers), k, np.int64)
        macs = np.full(n, self._table.full, np.int64)
        plain = (penalty == 0) & (cap >= 1)
        pruned = np.flatnonzero(~plain)
        if plain.any():
            (logits[plain],) = self._plain.run(["logits"], {"image": images[plain]})
        limits = cap_macs(cap, self._table.full)
        for row in pruned:
            here = slice(row, row + 1)
            logits[here], widths[here] = self._run_row(images[here], penalty[here], limits[here])
        macs[pruned] = path_macs(widths[pruned], self._table, agent=True)
        return Result(logits, widths, macs)

    def _run_row(self, image: Floats, penalty: Floats, limit: Integers) -> tuple[Floats, Integers]:
        """One image along its path. Runs share no state: several may go on at the same time."""
        logits, widths = self._pruned.run(
            ["logits", "widths"], {"image": image, "penalty": penalty, "cap_macs": limit}
        )
        return logits, widths


def _session(
    bundle: Bundle, build: Build, threads: int | None, cache_dir: Path | None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Idle threads would otherwise spin on, on the cores that decoding and HTTP need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Branches of an `If` differ in shape, about which the runtime would warn.
    options.log_severity_level = 3
    with graph_file(bundle, build, cache_dir) as path:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
