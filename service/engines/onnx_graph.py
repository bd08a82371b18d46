"""The CPU engine: a bundle as ONNX graphs. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.bundle import Bundle
from models.compute import cap_macs, look_price, path_macs
from service.engines.base import Floats, Integers, Result
from service.engines.onnx_builder import look_graph, path_graph, pruned_graph
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
        self._pruned: _Pruned = (_ByLooks if bundle.card.agent.paths else _ByLayer)(bundle, load)

    def run(self, images: Floats, penalty: Floats, cap: npt.NDArray[np.float64]) -> Result:
        """Classify images, each by its own penalty and cap; see `Engine.run`."""
        plain = (penalty == 0) & (cap >= 1)
        # Most batches are all of a kind, and then nothing is copied.
        if plain.all():
            return self._whole(images)
        limits = cap_macs(cap, self._table.full)
        if not plain.any():
            return self._pruned.run(images, penalty, limits)
        logits = np.empty((len(images), self._classes), np.float32)
        widths = np.empty((len(images), self._layers), np.int64)
        macs = np.empty(len(images), np.int64)
        parts = [
            (plain, self._whole(images[plain])),
            (~plain, self._pruned.run(images[~plain], penalty[~plain], limits[~plain])),
        ]
        for rows, part in parts:
            logits[rows], widths[rows], macs[rows] = part.logits, part.widths, part.macs
        return Result(logits, widths, macs)

    def _whole(self, images: Floats) -> Result:
        """Answers of the plain network."""
        (logits,) = self._plain.run(["logits"], {"image": images})
        n = len(images)
        widths = np.full((n, self._layers), self._table.groups, np.int64)
        return Result(logits, widths, np.full(n, self._table.full, np.int64))


class _Pruned(Protocol):
    """Runs images along the paths that an agent chooses."""

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> Result:
        """Answers for images, penalties (N,) and most MACs (N,)."""
        ...


class _ByLooks:
    """All images along the first path, then those that go on to another as one batch along it."""

    def __init__(self, bundle: Bundle, load: Load) -> None:
        table, agent = bundle.card.table(), bundle.card.agent
        self._paths, self._macs = np.array(agent.paths, np.int64), np.array(table.looks, np.int64)
        self._price = look_price(table)
        self._looks = [
            load(f"look-{number}", partial(look_graph, number=number))
            for number in range(agent.deciding)
        ]
        self._ends = [_along(load, path) for path in agent.paths[agent.deciding :]]

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> Result:
        logits, chosen = self._run(0, images, penalty, limits - self._macs[0])
        spent = np.full(len(images), self._macs[0])
        for number in range(1, len(self._paths)):
            # Those that stopped are behind, those that go on to a later path ahead.
            here = (chosen == number).nonzero()[0]
            if len(here):
                spent[here] += self._macs[number]
                left = limits[here] - spent[here]
                logits[here], chosen[here] = self._run(number, images[here], penalty[here], left)
        return Result(logits, self._paths[chosen], spent)

    def _run(
        self, number: int, images: Floats, penalty: Floats, left: Integers
    ) -> tuple[Floats, Integers]:
        """Logits along a path, and the path chosen after it: a later one, or itself to stop."""
        if number >= len(self._looks):
            (logits,) = self._ends[number - len(self._looks)].run(["logits"], {"image": images})
            return logits, np.full(len(images), number)
        inputs = {"image": images, "penalty": penalty}
        logits, gain = self._looks[number].run(["logits", "gain"], inputs)
        return logits, number + self._choose(number, gain, penalty, left)

    def _choose(self, number: int, gain: Floats, penalty: Floats, left: Integers) -> Integers:
        """How many paths (N,) to go on by the best of those that the MACs allow, 0 to stop."""
        later = slice(number + 1, None)
        values = gain - penalty[:, None] * self._price[later]
        values[self._macs[later] > left[:, None]] = -np.inf
        # Stopping gains nothing and costs nothing.
        best: Integers = np.where(values.max(axis=1) > 0, values.argmax(axis=1) + 1, 0)
        return best


class _ByLayer:
    """Each image by itself, the agent inside the graph."""

    def __init__(self, bundle: Bundle, load: Load) -> None:
        self._session, self._table = load("pruned", pruned_graph), bundle.card.table()

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> Result:
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
        logits, paths = zip(*answers, strict=True)
        widths = np.stack(paths)
        return Result(np.concatenate(logits), widths, path_macs(widths, self._table, agent=True))


def _along(load: Load, path: Sequence[int]) -> ort.InferenceSession:
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
