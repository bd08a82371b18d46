"""An agent that looks, on the GPU: one small kernel decides after a path how each image goes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from models.bundle import Bundle
from models.compute import look_price
from models.config import LOOK_LEAST_LOG, LOOK_TOP, PENALTY_MIDPOINT
from service.engines.triton_kernels import decide_kernel

BLOCK = 32


@dataclass(frozen=True)
class Rows:
    """What images ask and where they are, on the device.

    Attributes:
        penalty: (N,) float32. limits: (N,) int64, MACs that may be spent.
        widths: (M, 1 + L, N) int32, groups at each step of each path; 0 where it is not run.
        chosen: (N,) int64, the path that gives the answer. spent: (N,) int64, MACs.
    """

    penalty: Tensor
    limits: Tensor
    widths: Tensor
    chosen: Tensor
    spent: Tensor


class TritonAgent:
    """The decisions of a bundle's agent, which must be of the form "paths"."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        card, table = bundle.card, bundle.card.table()
        backbone, self._hidden = card.backbone, card.agent.hidden
        self.deciding, self.blend = card.agent.deciding, card.agent.blend
        self.mirrored = [card.agent.mirrored(number) for number in range(len(card.agent.paths))]
        # Each path's groups: those of the image, which are all, and of the layers.
        self.steps = [[backbone.groups, *path] for path in card.agent.paths]
        self.paths = torch.tensor(self.steps, dtype=torch.int32, device=device)
        self._macs = torch.tensor(table.looks, device=device)
        self._price = torch.from_numpy(look_price(table)).to(device)
        self._classes = backbone.classes
        maps = card.agent.sees == "maps"
        self._shares = backbone.classes if maps else 0
        self._top = min(LOOK_TOP[card.agent.sees], backbone.classes)
        self._read = [
            backbone.in_channels(backbone.n_layers, path[-1]) if maps else 0 for path in self.steps
        ]
        self._layers = [
            [
                torch.from_numpy(bundle.tensors[f"agent.looks.{look}.{layer}.{part}"].T)
                .to(device, torch.float32)
                .contiguous()
                for layer in range(3)
                for part in ("weight", "bias")
            ]
            for look in range(self.deciding)
        ]

    def decide(self, look: int, logits: Tensor, means: Tensor, rows: Rows) -> None:
        """Let the images that have run path `look` stop or go on.

        Args:
            logits: (N, classes) float32. means: (N, C) float32, of the last maps.
            rows: written for those that go on.
        """
        n_paths, steps = self.paths.shape
        decide_kernel[(len(logits),)](
            logits,
            means,
            rows.penalty,
            rows.limits,
            *self._layers[look],
            self._price,
            self._macs,
            self.paths,
            rows.widths,
            rows.chosen,
            rows.spent,
            len(logits),
            LOOK=look,
            PATHS=n_paths,
            STEPS=steps,
            CLASSES=self._classes,
            SHARES=self._shares,
            TOP=self._top,
            READ=self._read[look],
            MAPS=means.shape[1],
            HIDDEN=self._hidden,
            MIDPOINT=PENALTY_MIDPOINT,
            LEAST_LOG=LOOK_LEAST_LOG,
            ALL_CLASSES=triton.next_power_of_2(self._classes),
            ALL_HIDDEN=triton.next_power_of_2(self._hidden),
            ALL_PATHS=triton.next_power_of_2(n_paths),
            ALL_STEPS=triton.next_power_of_2(steps),
            BLOCK=BLOCK,
        )
