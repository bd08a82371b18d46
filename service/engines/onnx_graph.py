"""The CPU engine: a bundle as ONNX graphs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from models.bundle import Bundle
from models.compute import cap_macs, path_macs
from service.engines.base import Caps, Floats, Integers, Result, is_plain
from service.engines.onnx_builder import path_graph, paths_graph, pruned_graph
from service.engines.onnx_cache import Build, graph_file

# How long a thread without work spins before it sleeps: as long as it takes to begin the next path.
# What goes beyond is taken from decoding, HTTP and other programs; see docs/performance.md.
SPIN_US = 200

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
            threads: that one operation may use, the caller's own among them; by default as many as
                there are cores.
            cache_dir: where built graphs are kept for the next start; by default nowhere.
        """
        self._layers = bundle.card.backbone.n_layers
        self._classes = bundle.card.backbone.classes
        self._table = bundle.card.table()
        load = partial(_session, bundle, threads, cache_dir)
        self._network: _Network = (_ByLooks if bundle.card.agent.paths else _ByLayer)(bundle, load)

    def run(self, images: Floats, penalty: Floats, cap: Caps) -> Result:
        """Classify images, each by its own penalty and cap; see `Engine.run`."""
        plain = is_plain(penalty, cap)
        n_plain = np.count_nonzero(plain)
        # Most batches are all of a kind, and then nothing is copied.
        if n_plain == len(images):
            return self._whole(images)
        limits = cap_macs(cap, self._table.full)
        if not n_plain:
            return self._network.run(images, penalty, limits)
        logits = np.empty((len(images), self._classes), np.float32)
        widths = np.empty((len(images), self._layers), np.int64)
        macs = np.empty(len(images), np.int64)
        parts = [
            (plain, self._whole(images[plain])),
            (~plain, self._network.run(images[~plain], penalty[~plain], limits[~plain])),
        ]
        for rows, part in parts:
            logits[rows], widths[rows], macs[rows] = part.logits, part.widths, part.macs
        return Result(logits, widths, macs)

    def _whole(self, images: Floats) -> Result:
        """Answers of the plain network."""
        n = len(images)
        widths = np.full((n, self._layers), self._table.groups, np.int64)
        return Result(self._network.whole(images), widths, np.full(n, self._table.full, np.int64))


class _Network(Protocol):
    """Runs images whole, or along the paths that an agent chooses."""

    def whole(self, images: Floats) -> Floats:
        """Logits of the full network."""
        ...

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> Result:
        """Answers for images, penalties (N,) and most MACs (N,)."""
        ...


class _ByLooks:
    """All images along the first path, then those that go on to another as one batch along it.

    The paths are branches of one graph, and so share the threads of one session. Threads of other
    sessions would sleep when an image goes on to their path, or keep a core by spinning before.
    """

    def __init__(self, bundle: Bundle, load: Load) -> None:
        agent, looks = bundle.card.agent, bundle.card.table().looks
        paths, self._blend, self._deciding = agent.paths, agent.blend, agent.deciding
        self._classes = bundle.card.backbone.classes
        self._mirrored = [agent.mirrored(number) for number in range(len(paths))]
        self._paths, self._macs = np.array(paths, np.int64), np.array(looks, np.int64)
        self._session = load("paths", paths_graph)
        self._numbers = np.arange(len(paths))[:, None]

    def whole(self, images: Floats) -> Floats:
        # The agent does not decide after the last path, so nobody reads these.
        penalty, left = np.zeros(len(images), np.float32), np.zeros(len(images), np.int64)
        return self._along(len(self._paths) - 1, images, penalty, left, None)[0]

    def run(self, images: Floats, penalty: Floats, limits: Integers) -> Result:
        number, left = 0, limits - self._macs[0]
        logits, chosen = self._along(number, images, penalty, left, None)
        # Those that stopped are at this path or behind, those that go on to a later path ahead.
        while len(ahead := chosen[chosen > number]):
            number = ahead.min()
            here = (chosen == number).nonzero()[0]
            left[here] -= self._macs[number]
            logits[here], chosen[here] = self._along(
                number, images[here], penalty[here], left[here], logits[here]
            )
        return Result(logits, self._paths[chosen], limits - left)

    def _along(
        self, number: int, images: Floats, penalty: Floats, left: Integers, before: Floats | None
    ) -> tuple[Floats, Integers]:
        """Logits after a path, and the path chosen then: a later one, or itself to stop.

        Args:
            before: logits after the path before, if there was one.
        """
        if self._mirrored[number]:
            images = np.ascontiguousarray(images[..., ::-1])
        inputs = {
            "image": images,
            "path": self._numbers[number],
            "penalty": penalty[:, None],
            "left": left[:, None],
        }
        if self._blend:
            nothing = np.zeros((len(images), self._classes), np.float32)
            inputs["before"] = nothing if before is None else before
        logits, chosen = self._session.run(["logits", "chosen"], inputs)
        # The graph blends only what the agent decides by: its last path is the plain network too.
        if before is not None and self._blend and number >= self._deciding:
            logits += self._blend * (before - logits)
        return logits, chosen


class _ByLayer:
    """Each image by itself, the agent inside the graph."""

    def __init__(self, bundle: Bundle, load: Load) -> None:
        self._session, self._table = load("pruned", pruned_graph), bundle.card.table()
        whole = [self._table.groups] * bundle.card.backbone.n_layers
        self._plain = load("whole", partial(path_graph, path=whole))

    def whole(self, images: Floats) -> Floats:
        logits: Floats = self._plain.run(["logits"], {"image": images})[0]
        return logits

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


def _session(
    bundle: Bundle, threads: int | None, cache_dir: Path | None, name: str, build: Build
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    # Branches of an `If` differ in shape, about which the runtime would warn.
    options.log_severity_level = 3
    with graph_file(bundle, name, build, cache_dir) as path:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
