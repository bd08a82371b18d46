"""Gradients of a batch along several paths, of which the full one teaches the others.

On a GPU the hundreds of small kernels of a path cost more to launch than to run: a path that comes
again is captured, forwards and backwards, as a CUDA graph, and from then on launched as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.network import Network

# Passes along a path before it is captured, and most graphs: random paths hardly come again.
PASSES, GRAPHS = 3, 24

Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Backward:
    """Adds the gradients of batches to a network's.

    Gradients must stay where they are between steps, so on a GPU they are set to zero, not freed.
    """

    def __init__(
        self, network: Network, *, smoothing: float, autocast: torch.autocast, capture: bool = True
    ) -> None:
        """Prepare.

        Args:
            smoothing: label smoothing of the teacher's loss.
            autocast: for forward passes.
            capture: whether paths are captured, where that can be.
        """
        self._network, self._smoothing, self._autocast = network, smoothing, autocast
        self._capture = capture
        self._passes: Counter[object] = Counter()
        self._graphs: dict[object, Pass] = {}
        self._pool: Any = None

    def __call__(
        self, images: Tensor, labels: Tensor, paths: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradients of one batch.

        Args:
            images: (N, 3, H, W).
            labels: (N,) int64, or targets (N, classes), of which the largest counts as right.
            paths: the teacher's first, the full one.
        Returns: the full network's cross-entropy (), how many images it classified rightly (), and
            its probabilities (N, classes); all on the device, which need not be done yet.
        """
        targets = labels
        if labels.ndim == 1:
            targets = F.one_hot(labels, self._network.backbone.classes).float()
        loss, logits = self._along(paths[0], self._smoothing, images, targets)
        teacher = logits.softmax(dim=1)
        for path in paths[1:]:
            self._along(path, 0.0, images, teacher)
        return loss, (logits.argmax(dim=1) == targets.argmax(dim=1)).sum(), teacher

    def _along(
        self, path: Sequence[int], smoothing: float, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients along one path; gives loss () and logits (N, classes)."""

        def run(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            with self._autocast:
                logits = self._network(images, path).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), logits.detach()

        key = (tuple(path), smoothing, self._network.training, images.shape)
        if key in self._graphs:
            return self._graphs[key](images, targets)
        self._passes[key] += 1
        known = self._passes[key] > PASSES and len(self._graphs) < GRAPHS
        if not (self._capture and images.is_cuda and known):
            return run(images, targets)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._graphs[key] = captured(run, images, targets, self._pool)
        return self._graphs[key](images, targets)


def captured(run: Pass, images: Tensor, targets: Tensor, pool: Any) -> Pass:
    """A pass as a CUDA graph, whose answers stand until it is called again.

    Args:
        images, targets: of the sizes that it is for.
        pool: memory that it shares with other graphs, which do not run at the same time.
    """
    static_images, static_targets = images.clone(), targets.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        answers = run(static_images, static_targets)

    def replay(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        static_images.copy_(images)
        static_targets.copy_(targets)
        graph.replay()
        return answers

    return replay
