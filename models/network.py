"""Backbone and agent as one network: along one path, along each image's path, or by policy.

A batch along one path is sliced: only the prefixes are computed. Where images differ, feature maps
are stored whole with zeros beyond each image's prefix, and each layer runs once for every
(input width, output width) that occurs, on the images that have it: nothing is computed for a
channel that is off, whatever the mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.agent import Agent
from models.compute import MacTable, cap_macs, mac_table
from models.config import AgentConfig, BackboneConfig
from models.layers import Projection, WidthConv

Chooser = Callable[[int, Tensor, Tensor], Tensor]


@dataclass
class Trace:
    """What images did on their way.

    Attributes:
        widths: (N, L) int64.
        pooled: for each layer after the first, (N, C) mean of its input channels.
    """

    widths: Tensor
    pooled: list[Tensor]


class Network(nn.Module):
    """A prunable backbone with its agent."""

    def __init__(self, backbone: BackboneConfig, agent: AgentConfig | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.agent = Agent(backbone, agent or AgentConfig())
        k = backbone.groups
        self.convs = nn.ModuleList(WidthConv(layer, k) for layer in backbone.layers)
        self.projections = nn.ModuleDict(
            {
                str(i): Projection(
                    backbone.layers[i - 1].in_channels,
                    layer.out_channels,
                    backbone.layers[i - 1].stride,
                )
                for i, layer in enumerate(backbone.layers)
                if layer.shortcut == "project"
            }
        )
        features = backbone.in_channels(backbone.n_layers, k) * backbone.pool_to**2
        sizes = zip((features, *backbone.linears), backbone.linears, strict=False)
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    @property
    def table(self) -> MacTable:
        """MACs of every step."""
        return mac_table(self.backbone, self.agent.config)

    def forward(self, images: Tensor, widths: Sequence[int]) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W), all along one path of L widths, sliced."""
        x = shortcut = images
        before = self.backbone.groups
        for index, width in enumerate(widths):
            if self.backbone.layers[index].reads == "stream":
                shortcut, before = x, self.backbone.groups
            y = self.convs[index](x, before, self.backbone.out_channels(index, width))
            x, before = self._activate(index, y, shortcut), width
        return self._classify(x)

    def along(self, images: Tensor, paths: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W), each along its row of paths (N, L)."""
        return self.run(images, lambda layer, _pooled, _before: paths[:, layer])[0]

    def by_policy(self, images: Tensor, penalty: Tensor, cap: Tensor) -> tuple[Tensor, Trace]:
        """Let the agent choose.

        Args:
            images: (N, 3, H, W). penalty: (N,). cap: (N,) float64, share of the full MACs.
        Returns: logits (N, classes) and the trace.
        """
        return self.run(images, Greedy(self.agent, self.table, penalty, cap))

    def run(self, images: Tensor, choose: Chooser) -> tuple[Tensor, Trace]:
        """Run images along paths that `choose(layer, pooled, width before)` gives, (N,) each."""
        k = self.backbone.groups
        x = shortcut = images
        widths = [torch.full((len(images),), k, device=images.device)]
        pooled: list[Tensor] = []
        for index, layer in enumerate(self.backbone.layers):
            if index > 0:
                pooled.append(x.mean((2, 3), dtype=torch.float32))
                widths.append(choose(index, pooled[-1], widths[-1]))
            before = widths[-2] if index > 0 else widths[-1]
            if self.backbone.whole_input(index):
                before = torch.full_like(before, k)
            if layer.reads == "stream":
                shortcut = x
            y = self._by_groups(index, x, before, widths[-1])
            x = self._activate(index, y, shortcut)
        return self._classify(x), Trace(torch.stack(widths, dim=1), pooled)

    def _by_groups(self, index: int, x: Tensor, before: Tensor, width: Tensor) -> Tensor:
        """(N, C, H', W') of one layer, zero beyond each image's width."""
        conv, k = self.convs[index], self.backbone.groups
        pairs = before * (k + 1) + width
        # Images of a pair side by side: then one gather and one scatter serve all pairs, also in
        # the backward pass, where one for each pair would fill a whole gradient with zeros.
        order = pairs.argsort(stable=True)
        counts = torch.bincount(pairs, minlength=(k + 1) ** 2).tolist()
        parts = []
        for pair, part in enumerate(torch.split(x[order], counts)):
            if not len(part):
                continue
            i, o = divmod(pair, k + 1)
            channels = self.backbone.out_channels(index, o)
            y = conv(part[:, : self.backbone.in_channels(index, i)], i, channels)
            extra = self.backbone.layers[index].out_channels - channels
            parts.append(F.pad(y, (0, 0, 0, 0, 0, extra)) if extra else y)
        return torch.cat(parts)[order.argsort()]

    def _activate(self, index: int, y: Tensor, shortcut: Tensor) -> Tensor:
        layer = self.backbone.layers[index]
        if layer.shortcut is not None:
            y = _add_prefix(self._shortcut(index, shortcut), y)
        y = torch.relu(y)
        return y if layer.pool is None else F.max_pool2d(y, *layer.pool)

    def _shortcut(self, index: int, x: Tensor) -> Tensor:
        layer = self.backbone.layers[index]
        if layer.shortcut == "project":
            projected: Tensor = self.projections[str(index)](x)
            return projected
        if layer.shortcut == "pad":
            stride = self.backbone.layers[index - 1].stride
            extra = layer.out_channels - x.shape[1]
            return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, extra))
        return x

    def _classify(self, x: Tensor) -> Tensor:
        pool_to = self.backbone.pool_to
        x = F.adaptive_avg_pool2d(x, pool_to).flatten(1)
        first, *rest = self.head
        assert isinstance(first, nn.Linear)
        # Flattened channel by channel, a prefix of the channels is a prefix of the features.
        x = F.linear(x, first.weight[:, : x.shape[1]], first.bias)
        for linear in rest:
            x = linear(torch.relu(x))
        return x


class Greedy:
    """Chooses the widths that the agent values most, among those that the cap allows."""

    def __init__(self, agent: Agent, table: MacTable, penalty: Tensor, cap: Tensor) -> None:
        self.agent, self.penalty = agent, penalty
        device = penalty.device
        self.steps = torch.from_numpy(table.steps()).to(device)
        self.after = torch.from_numpy(table.after()).to(device)
        limits = cap_macs(cap.double().cpu().numpy(), table.full)
        self.left = torch.from_numpy(limits).to(device) - self.steps[0, -1, -1]
        self.hidden = agent.start(len(penalty))

    def __call__(self, layer: int, pooled: Tensor, before: Tensor) -> Tensor:
        """Widths (N,) of a layer."""
        values, self.hidden = self.agent(layer, pooled, before, self.penalty, self.hidden)
        width = self.pick(values, self.after[layer, before - 1] <= self.left[:, None])
        self.left = self.left - self.steps[layer, before - 1, width - 1]
        return width

    def pick(self, values: Tensor, allowed: Tensor) -> Tensor:
        """(N,) the best allowed width of each row of Q-values (N, k)."""
        return values.masked_fill(~allowed, -torch.inf).argmax(dim=1) + 1


def _add_prefix(x: Tensor, prefix: Tensor) -> Tensor:
    channels = prefix.shape[1]
    if channels == x.shape[1]:
        return x + prefix
    return torch.cat([x[:, :channels] + prefix, x[:, channels:]], dim=1)
