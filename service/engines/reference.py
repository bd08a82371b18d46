"""The reference engine: PyTorch, float32, as plain as the mathematics. Others are judged by it."""

from __future__ import annotations

import numpy as np
import torch

from models.bundle import Bundle
from models.weights import load
from service.engines.base import Caps, Floats, Result, is_plain


class TorchEngine:
    """Runs a bundle with PyTorch on the CPU, rows with different paths together."""

    name = "torch"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Build the network of a verified bundle.

        Args:
            threads: of all torch operations in this process; None leaves torch its default.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        card = bundle.card
        self._full, self._k = card.table().full, card.backbone.groups
        self._network = load(card.backbone, card.agent, bundle.tensors)
        self._classes, self._layers = card.backbone.classes, card.backbone.n_layers

    @torch.inference_mode()
    def run(self, images: Floats, penalty: Floats, cap: Caps) -> Result:
        """Classify images, each by its own penalty and cap; see `service.engines.base.Engine`."""
        plain = is_plain(penalty, cap)
        logits = np.empty((len(images), self._classes), np.float32)
        widths = np.full((len(images), self._layers), self._k, np.int64)
        macs = np.full(len(images), self._full, np.int64)
        if plain.any():
            logits[plain] = self._network(
                torch.from_numpy(images[plain]), widths[0].tolist()
            ).numpy()
        if not plain.all():
            chosen = ~plain
            answers, trace = self._network.by_policy(
                torch.from_numpy(images[chosen]),
                torch.from_numpy(penalty[chosen]),
                torch.from_numpy(cap[chosen]),
            )
            logits[chosen], widths[chosen] = answers.numpy(), trace.widths.numpy()
            macs[chosen] = trace.macs.numpy()
        return Result(logits, widths, macs)
