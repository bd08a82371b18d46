"""Decision networks: one that looks and goes on along whole paths, one that decides layer by layer.

A value is what the agent expects to gain minus the penalty times the price of the action. The price
is known beforehand, so it is not learnt: any penalty can be asked of the same agent.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.compute import cap_macs, look_price, mac_table, price
from models.config import (
    LOOK_LEAST_LOG,
    LOOK_TOP,
    PENALTY_MIDPOINT,
    AgentConfig,
    BackboneConfig,
    decisions,
    look_sizes,
)


class PathAgent(nn.Module):
    """Runs an image along paths of rising MACs until what it has seen will do.

    After a path it stops there or goes on to a later one. A decision has a network of its own,
    because paths differ in how many maps they hold. What it decides by is the answer so far, which
    may hold those of the looks before (`AgentConfig.views`).

    Attributes:
        paths: (M, L) int64, widths. macs: (M,) int64, of each with the decision after it.
        price: (M,) float32, those as shares of the full network's.
    """

    paths: Tensor
    macs: Tensor
    price: Tensor

    def __init__(self, backbone: BackboneConfig, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.looks = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(a, b) for a, b in itertools.pairwise(look_sizes(backbone, config, look))
            )
            for look in range(config.deciding)
        )
        table = mac_table(backbone, config)
        self.full = table.full
        self.register_buffer("paths", torch.tensor(config.paths), persistent=False)
        self.register_buffer("macs", torch.tensor(table.looks), persistent=False)
        self.register_buffer("price", torch.from_numpy(look_price(table)), persistent=False)

    def seen(self, logits: Tensor, pooled: Tensor) -> Tensor:
        """What the agent sees, (N, F): the largest shares in falling order, and their logarithms.

        If it sees the maps as well: all shares before the sorted ones, and the means at the end.

        Args:
            logits: (N, classes), the answer after a path.
            pooled: (N, C), the path's last map's mean per channel.
        """
        logs = logits.log_softmax(dim=1).clamp(min=LOOK_LEAST_LOG)
        top = logs.topk(min(LOOK_TOP[self.config.sees], logs.shape[1]), dim=1).values
        if self.config.sees == "answer":
            return torch.cat([top.exp(), top], dim=1)
        logs = torch.cat([logs, top], dim=1)
        return torch.cat([logs.exp(), logs, pooled], dim=1)

    def forward(self, look: int, seen: Tensor, penalty: Tensor) -> Tensor:
        """What each path after `look` is expected to gain over stopping there: (…, M - 1 - look).

        What is gained by going on from that path is included, and what that costs.

        Args:
            look: number of the path that was run.
            seen: (…, F) of it. penalty: (…) price of the full network's compute.
        """
        hidden = torch.cat([seen, squashed(penalty)[..., None]], dim=-1)
        *layers, last = self.layers(look)
        for layer in layers:
            hidden = torch.relu(layer(hidden))
        gain: Tensor = last(hidden)
        return gain

    def layers(self, look: int) -> list[nn.Linear]:
        """The layers of the decision after path `look`."""
        layers = self.looks[look]
        assert isinstance(layers, nn.ModuleList)
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    def values(self, look: int, gain: Tensor, penalty: Tensor) -> Tensor:
        """Values (…, M - look) of stopping and of each later path, of gains and penalties (…)."""
        return F.pad(gain - penalty[..., None] * self.price[look + 1 :], (1, 0))

    def choose(self, look: int, gain: Tensor, penalty: Tensor, left: Tensor) -> Tensor:
        """Number (N,) of the path to run after `look`, or `look` itself to stop.

        Args:
            gain: (N, M - 1 - look). penalty: (N,).
            left: (N,) int64, MACs that may still be spent.
        """
        dear = F.pad(self.macs[look + 1 :] > left[:, None], (1, 0))
        return look + self.values(look, gain, penalty).masked_fill(dear, -torch.inf).argmax(dim=1)

    def limits(self, cap: Tensor) -> Tensor:
        """(N,) int64, MACs that may be spent under caps (N,), which are shares of the full ones."""
        return torch.from_numpy(cap_macs(cap.double().cpu().numpy(), self.full)).to(cap.device)


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
        prices = torch.from_numpy(price(mac_table(backbone, config), config.form))
        self.register_buffer("price", prices, persistent=False)

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
            penalty: (N,) price of the full network's compute, or in the paper's form of one group.
                Below 0 compute is paid for, and spent even where it is not expected to help; the
                agent is then told 0.
            hidden: (N, hidden) state carried from the layers before.
        Returns: Q-values (N, k) and the next hidden state (N, hidden).
        """
        features = torch.relu(self.encoder[str(layer)](pooled))
        if self.config.form == "priced":
            features = torch.cat([features, squashed(penalty)[:, None]], dim=1)
        hidden = self.cell(features, hidden)
        values = (
            self.decoder(hidden) - penalty[:, None] * self.price[layer, earlier - 1, before - 1]
        )
        return values, hidden


def squashed(penalty: Tensor) -> Tensor:
    """A penalty as the agent is told it, in [0, 1); below 0 it is told 0."""
    told = penalty.clamp(min=0)
    return told / (told + PENALTY_MIDPOINT)


def new_agent(backbone: BackboneConfig, config: AgentConfig) -> PathAgent | LayerAgent:
    """An agent of the configured form, with random weights."""
    return (PathAgent if config.form == "paths" else LayerAgent)(backbone, config)
