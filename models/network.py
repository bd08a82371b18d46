"""Backbone and agent as one network: along one path, along each image's path, or by policy.

A batch along one path is sliced: only the prefixes are computed. Where images differ, feature maps
are stored whole with zeros beyond each image's prefix, and each layer's convolution runs once for
every (input width, output width) that occurs, on the images that have it: no convolution computes
a channel that is off, whatever the mixture. (The agent and the end, far smaller, read the zeros.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.agent import Agent
from models.compute import MacTable, cap_macs, mac_table
from models.config import GLANCE_TOP, AgentConfig, BackboneConfig
from models.layers import Projection, WidthConv

Chooser = Callable[[int, Tensor, Tensor], Tensor]


@dataclass
class Trace:
    """What images did on their way.

    Attributes:
        widths: (N, L) int64.
        pooled: for each layer after the first, (N, C) mean of its input channels, zero for images
            that are done; for layer 1 after a glance, what was seen of it.
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
        return self._classify(self._sliced(images, widths, 0))

    def along(self, images: Tensor, paths: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W), each along its row of paths (N, L)."""
        return self.run(images, lambda layer, _pooled, _before: paths[:, layer])[0]

    def by_policy(self, images: Tensor, penalty: Tensor, cap: Tensor) -> tuple[Tensor, Trace]:
        """Let the agent choose.

        Args:
            images: (N, 3, H, W). penalty: (N,). cap: (N,) float64, share of the full MACs.
        Returns: logits (N, classes) and the trace.
        """
        chooser = Greedy(self.agent, self.table, penalty, cap)
        return self.run(images, chooser, glance=self.agent.config.glance)

    def run(self, images: Tensor, choose: Chooser, *, glance: bool = False) -> tuple[Tensor, Trace]:
        """Run images along paths that `choose(layer, pooled, width before)` gives, (N,) each.

        Args:
            glance: run the narrowest path first; `choose(1, …)` is then given its opinion, and the
                images for which it gives 1 are answered with that.
        """
        k, n_layers = self.backbone.groups, self.backbone.n_layers
        widths = [torch.full((len(images),), k, device=images.device)]
        x = shortcut = self._activate(0, self._by_groups(0, images, widths[0], widths[0]), images)
        here = torch.arange(len(images), device=images.device)
        logits, pooled = None, []
        if glance:
            logits, state = self._glance(x)
        for index in range(1, n_layers):
            if not glance or index > 1:
                state = _scattered(x.mean((2, 3), dtype=torch.float32), here, len(images))
            pooled.append(state)
            width = choose(index, state, widths[-1])
            if glance and index == 1:
                here = (width > 1).nonzero()[:, 0]
                x = x[here]
            widths.append(torch.where(widths[1] == 1, 1, width) if glance and index > 1 else width)
            before = widths[-2][here]
            if self.backbone.whole_input(index):
                before, shortcut = torch.full_like(before, k), x
            x = self._activate(index, self._by_groups(index, x, before, widths[-1][here]), shortcut)
        trace = Trace(torch.stack(widths, dim=1), pooled)
        if logits is None:
            return self._classify(x), trace
        return logits.index_copy(0, here, self._classify(x)) if len(here) else logits, trace

    def _glance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the narrowest path from layer 0's output on, and the agent's view of it."""
        x = self._sliced(x, [self.backbone.groups] + [1] * (self.backbone.n_layers - 1), 1)
        logits = self._classify(x)
        chances = logits.float().softmax(dim=1)
        surest = chances.topk(min(GLANCE_TOP, self.backbone.classes), dim=1).values
        return logits, torch.cat([chances, surest, x.mean((2, 3), dtype=torch.float32)], dim=1)

    def _sliced(self, x: Tensor, widths: Sequence[int], first: int) -> Tensor:
        """The map that enters the end, of inputs of layer `first` along one path of L widths."""
        shortcut = x
        for index in range(first, len(widths)):
            before = widths[index - 1]
            if self.backbone.whole_input(index):
                before, shortcut = self.backbone.groups, x
            y = self.convs[index](x, before, self.backbone.out_channels(index, widths[index]))
            x = self._activate(index, y, shortcut)
        return x

    def _by_groups(self, index: int, x: Tensor, before: Tensor, width: Tensor) -> Tensor:
        """(N, C, H', W') of one layer, zero beyond each image's width."""
        conv, k = self.convs[index], self.backbone.groups
        if not len(x):
            size, channels = self.backbone.sizes()[index], self.backbone.layers[index].out_channels
            return x.new_zeros(0, channels, size, size)
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
        self.left = torch.from_numpy(limits).to(device) - table.start
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


def _scattered(rows: Tensor, here: Tensor, images: int) -> Tensor:
    """(images, C): the rows (n, C) at their places `here`, zeros elsewhere."""
    if len(rows) == images:
        return rows
    return rows.new_zeros(images, rows.shape[1]).index_copy(0, here, rows)


def _add_prefix(x: Tensor, prefix: Tensor) -> Tensor:
    channels = prefix.shape[1]
    if channels == x.shape[1]:
        return x + prefix
    return torch.cat([x[:, :channels] + prefix, x[:, channels:]], dim=1)
