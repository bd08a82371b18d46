"""Decision networks: one that chooses a whole path after a glance, one that decides layer by layer.

A value is what the agent expects to gain minus the penalty times the price. The price is known
beforehand, so it is not learnt: any penalty can be asked of the same agent.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.compute import cap_macs, mac_table, path_macs, path_price, price
from models.config import (
    GLANCE_LEAST_LOG,
    GLANCE_TOP,
    PENALTY_MIDPOINT,
    AgentConfig,
    BackboneConfig,
    decisions,
    glance_features,
)


class PathAgent(nn.Module):
    """Chooses one of a few paths from a glance: what the narrowest path answers and holds."""

    paths: Tensor
    macs: Tensor
    price: Tensor

    def __init__(self, backbone: BackboneConfig, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (glance_features(backbone), config.hidden, config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.gain = nn.Linear(config.hidden, len(config.paths) - 1)
        paths, table = np.array(config.paths, np.int64), mac_table(backbone, config)
        self.full = table.full
        macs, prices = path_macs(paths, table, agent=True), path_price(table, paths)
        self.register_buffer("paths", torch.from_numpy(paths), persistent=False)
        self.register_buffer("macs", torch.from_numpy(macs), persistent=False)
        self.register_buffer("price", torch.from_numpy(prices), persistent=False)

    @staticmethod
    def seen(logits: Tensor, pooled: Tensor) -> Tensor:
        """What the agent sees: shares, the largest sorted, logarithms of both, and the maps' means.

        Args:
            logits: (N, classes) of the glance. pooled: (N, C), its last map's mean per channel.
        """
        logs = logits.log_softmax(dim=1).clamp(min=GLANCE_LEAST_LOG)
        logs = torch.cat([logs, logs.topk(min(GLANCE_TOP, logs.shape[1]), dim=1).values], dim=1)
        return torch.cat([logs.exp(), logs, pooled], dim=1)

    def forward(self, seen: Tensor) -> Tensor:
        """What each path but the first is expected to gain over the glance: (N, M - 1)."""
        for layer in self.hidden:
            seen = torch.relu(layer(seen))
        gain: Tensor = self.gain(seen)
        return gain

    def values(self, gain: Tensor, penalty: Tensor) -> Tensor:
        """Values (N, M) of the paths, of gains (N, M - 1) and penalties (N,)."""
        return F.pad(gain, (1, 0)) - penalty[:, None] * self.price

    def choose(self, gain: Tensor, penalty: Tensor, cap: Tensor) -> Tensor:
        """Number (N,) of the best path that the cap allows; the first is always allowed.

        Args:
            gain: (N, M - 1). penalty: (N,). cap: (N,) float64, share of the full MACs.
        """
        limits = torch.from_numpy(cap_macs(cap.cpu().numpy(), self.full)).to(gain.device)
        allowed = self.macs <= limits[:, None]
        allowed[:, 0] = True
        return self.values(gain, penalty).masked_fill(~allowed, -torch.inf).argmax(dim=1)


class LayerAgent(nn.Module):
    """Decides each layer's width from the pooled feature map that enters it.

    Encoder (one per layer) → recurrent cell → decoder, a Q-value per width. What it gives is the
    decoder's minus the penalty times the action's price, the narrowest rest of the path included.
    (The paper learns all of it; its price is fixed.)
    """

    price: Tensor

    def __init__(self, backbone: BackboneConfig, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = decisions(backbone, config)
        self.encoder = nn.ModuleDict(
            {
                str(layer): nn.Linear(backbone.in_channels(layer, backbone.groups), config.encoding)
                for layer in self.layers
            }
        )
        self.cell = nn.GRUCell(config.cell_inputs, config.hidden)
        self.decoder = nn.Linear(config.hidden, backbone.groups)
        prices = price(mac_table(backbone, config), config.form)
        self.register_buffer("price", torch.from_numpy(prices.copy()), persistent=False)

    def start(self, images: int) -> Tensor:
        """The hidden state before the first decision, (N, hidden) of zeros."""
        return self.decoder.weight.new_zeros(images, self.config.hidden)

    def forward(
        self,
        layer: int,
        pooled: Tensor,
        earlier: Tensor,
        before: Tensor,
        penalty: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Value the widths of a layer.

        Args:
            layer: one about which the agent decides.
            pooled: (N, C) mean of each input channel, zero where it was not computed.
            earlier, before: (N,) int64, widths of the layers two and one before.
            penalty: (N,) price of the full network's compute. Below 0 compute is spent where it
                is expected to help least badly; the agent is then told 0.
            hidden: (N, hidden) state carried from the layers before.
        Returns: Q-values (N, k) and the next hidden state (N, hidden).
        """
        features = torch.relu(self.encoder[str(layer)](pooled))
        if self.config.form == "priced":
            told = penalty.clamp(min=0)
            squashed = told / (told + PENALTY_MIDPOINT)
            features = torch.cat([features, squashed[:, None]], dim=1)
        hidden = self.cell(features, hidden)
        values = (
            self.decoder(hidden) - penalty[:, None] * self.price[layer, earlier - 1, before - 1]
        )
        return values, hidden


def new_agent(backbone: BackboneConfig, config: AgentConfig) -> PathAgent | LayerAgent:
    """An agent of the configured form, with random weights."""
    return (PathAgent if config.form == "paths" else LayerAgent)(backbone, config)
