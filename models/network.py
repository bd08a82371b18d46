"""Backbone and agent as one network: along one path, along each image's path, or by policy.

A batch along one path is sliced: only the prefixes are computed. Where images differ, feature maps
are stored whole with zeros beyond each image's prefix, and each layer's convolution runs once for
every (input width, output width) that occurs, on the images that have it: no convolution computes
a channel that is off, whatever the mixture. (The agent and the classifier's linear layers, far
smaller, read the zeros.)

Of shapes, N are images, L layers, k the groups of a layer, M the paths of a `PathAgent`; a width is
of 1 to k. Layers decide one after another in Lin et al., Runtime Neural Pruning, NIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.agent import LayerAgent, PathAgent, new_agent
from models.compute import MacTable, cap_macs, mac_table, path_macs
from models.config import AgentConfig, BackboneConfig
from models.layers import WidthConv

Chooser = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Of the number of a path and of rows of images: what the path answers by itself, logits
# (N, classes), and the mean (N, C) of its last maps.
Looker = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Trace:
    """What images did on their way.

    Attributes:
        widths: (N, L) int64, of the path that gave the answer.
        macs: (N,) int64, all that was computed, the agent included.
        routes: (N, M) bool, along which of a `PathAgent`'s paths each was run; else absent.
        seen: for each decision on the way, the (N, C) mean of the layer's input channels.
    """

    widths: Tensor
    macs: Tensor
    routes: Tensor | None = None
    seen: list[Tensor] = field(default_factory=list)


class Network(nn.Module):
    """A prunable backbone with its agent."""

    def __init__(self, backbone: BackboneConfig, agent: AgentConfig | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.agent = new_agent(backbone, agent or AgentConfig())
        k = backbone.groups
        self.convs = nn.ModuleList(WidthConv(layer, k) for layer in backbone.layers)
        projections = {str(i): backbone.projection(i) for i in range(backbone.n_layers)}
        self.projections = nn.ModuleDict(
            {index: WidthConv(layer, k) for index, layer in projections.items() if layer}
        )
        features = backbone.in_channels(backbone.n_layers, k) * backbone.pool_to**2
        sizes = zip((features, *backbone.linears), backbone.linears, strict=False)
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        linear = self.head[0]
        assert isinstance(linear, nn.Linear)
        return linear.weight.device

    @property
    def table(self) -> MacTable:
        """MACs of every step."""
        return mac_table(self.backbone, self.agent.config)

    def forward(self, images: Tensor, widths: Sequence[int]) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W), all along one path of L widths, sliced."""
        return self._classify(self._sliced(images, widths))

    def along(self, images: Tensor, paths: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W), each along its row of paths (N, L)."""
        x = block = images
        for index in range(self.backbone.n_layers):
            block, x = x, self._layer(index, x, block, list(paths[:, : index + 1].T))
        return self._classify(x)

    def by_policy(self, images: Tensor, penalty: Tensor, cap: Tensor) -> tuple[Tensor, Trace]:
        """Let the agent choose.

        Args:
            images: (N, 3, H, W). penalty: (N,).
            cap: (N,) float64, share of the full MACs, infinite for none.
        Returns: logits (N, classes) and the trace. The agent is asked in any case: that a penalty
            of 0 means the plain network is known to engines alone.
        """
        if isinstance(self.agent, PathAgent):
            return self.by_looks(lambda n, rows: self.look(images[rows], n), penalty, cap)
        return self.run(images, Greedy(self.agent, self.table, penalty, cap))

    def run(self, images: Tensor, choose: Chooser) -> tuple[Tensor, Trace]:
        """Run images along paths that are decided layer by layer.

        Args:
            choose: called as choose(layer, pooled, earlier, before) at each decision with (N,)
                widths of the layers two and one before; gives the layer's. Layer 0 is whole, and
                what is added up has one width (`BackboneConfig.tied`): there nobody decides.
        Returns: logits (N, classes) and the trace.
        """
        whole = torch.full((len(images),), self.backbone.groups, device=images.device)
        widths, pooled = [whole, whole], []
        x = block = images
        for index in range(self.backbone.n_layers):
            width = whole
            if self.backbone.tied(index):
                width = widths[-2]
            elif index > 0:
                pooled.append(x.mean((2, 3), dtype=torch.float32))
                width = choose(index, pooled[-1], widths[-2], widths[-1])
            widths.append(width)
            block, x = x, self._layer(index, x, block, widths[2:])
        path = torch.stack(widths[2:], dim=1)
        macs = torch.from_numpy(path_macs(path.cpu().numpy(), self.table, agent=True))
        return self._classify(x), Trace(path, macs.to(path.device), seen=pooled)

    def look(self, images: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Run images (N, 3, H, W) along one of a `PathAgent`'s paths, mirrored if it wants that.

        Returns: what the path answers by itself, logits (N, classes), and the mean (N, C) of its
            last maps.
        """
        agent = self.agent
        assert isinstance(agent, PathAgent)
        seen = images.flip(3) if agent.config.mirrored(number) else images
        x = self._sliced(seen, agent.paths[number].tolist())
        return self._classify(x), x.mean((2, 3), dtype=torch.float32)

    def by_looks(self, look: Looker, penalty: Tensor, cap: Tensor) -> tuple[Tensor, Trace]:
        """As `by_policy`, of an agent that goes along whole paths.

        Args:
            look: asked for what a path answers of some of the images, as `look` of a network.
        """
        agent = self.agent
        assert isinstance(agent, PathAgent)
        routes = torch.zeros(len(penalty), len(agent.paths), dtype=torch.bool, device=cap.device)
        limits, spent = agent.limits(cap), torch.zeros_like(agent.macs[:1].expand(len(penalty)))
        logits = penalty.new_zeros(len(penalty), self.backbone.classes)
        chosen = torch.zeros_like(spent)
        for number in range(len(agent.paths)):
            here = (chosen == number).nonzero()[:, 0]
            if not len(here):
                continue
            answers, pooled = look(number, here)
            before = logits[here] if number else None
            logits[here] = blended(answers.to(logits.dtype), before, agent.config.blend)
            routes[here, number] = True
            spent[here] += agent.macs[number]
            if number < len(agent.looks):
                seen = agent.seen(logits[here], pooled)
                gain, left = agent(number, seen, penalty[here]), limits[here] - spent[here]
                chosen[here] = agent.choose(number, gain, penalty[here], left)
        return logits, Trace(agent.paths[chosen], spent, routes)

    def _sliced(self, images: Tensor, path: Sequence[int]) -> Tensor:
        """The map that enters the end, of images along one path of L widths."""
        widths, x = [self.backbone.groups] * 2 + list(path), images
        block = x
        for index, (earlier, before, own) in enumerate(
            zip(widths, widths[1:], widths[2:], strict=False)
        ):
            y = self.convs[index](x, before, self.backbone.out_channels(index, own))
            if str(index) in self.projections:
                block = self.projections[str(index)](block, earlier, y.shape[1])
            block, x = x, self._activate(index, y, block)
        return x

    def _layer(self, index: int, x: Tensor, block: Tensor, widths: list[Tensor]) -> Tensor:
        """A layer's output, zero beyond each image's width.

        Args:
            x: the layer's input. block: that of the layer before.
            widths: (N,) of each layer up to this one.
        """
        whole = torch.full_like(widths[0], self.backbone.groups)
        *_, earlier, before, own = [whole, whole, *widths]
        y = self._by_groups(index, self.convs[index], x, before, own)
        if str(index) in self.projections:
            block = self._by_groups(index, self.projections[str(index)], block, earlier, own)
        y = self._activate(index, y, block)
        if self.backbone.layers[index].shortcut == "pad":
            # What was padded may reach beyond the width.
            channels = torch.arange(y.shape[1], device=y.device)
            y = y * (channels < own[:, None] * y.shape[1] // self.backbone.groups)[..., None, None]
        return y

    def _by_groups(
        self, index: int, conv: nn.Module, x: Tensor, before: Tensor, width: Tensor
    ) -> Tensor:
        """(N, C, H', W') of a layer's convolution, zero beyond each image's width."""
        k, channels = self.backbone.groups, self.backbone.layers[index].out_channels
        if not len(x):
            size = self.backbone.sizes()[index]
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
            y = conv(part[:, : part.shape[1] * i // k], i, channels * o // k)
            parts.append(_padded(y, channels))
        return torch.cat(parts)[order.argsort()]

    def _activate(self, index: int, y: Tensor, shortcut: Tensor) -> Tensor:
        layer = self.backbone.layers[index]
        if layer.shortcut == "pad":
            stride = self.backbone.layers[index - 1].stride
            shortcut = _padded(shortcut[:, :, ::stride, ::stride], y.shape[1])
        if layer.shortcut is not None:
            y = y + shortcut
        y = torch.relu(y)
        return y if layer.pool is None else F.max_pool2d(y, *layer.pool)

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

    def __init__(self, agent: LayerAgent, table: MacTable, penalty: Tensor, cap: Tensor) -> None:
        self.agent, self.penalty = agent, penalty
        device = penalty.device
        self.steps = torch.from_numpy(table.steps()).to(device)
        self.after = torch.from_numpy(table.after()).to(device)
        limits = cap_macs(cap.double().cpu().numpy(), table.full)
        self.left = torch.from_numpy(limits).to(device) - table.start
        self.hidden = agent.start(len(penalty))

    def __call__(self, layer: int, pooled: Tensor, earlier: Tensor, before: Tensor) -> Tensor:
        """Widths (N,) of a layer."""
        values, self.hidden = self.agent(layer, pooled, earlier, before, self.penalty, self.hidden)
        here = layer, earlier - 1, before - 1
        width = self.pick(values, self.after[here] <= self.left[:, None])
        self.left = self.left - self.steps[*here, width - 1]
        return width

    def pick(self, values: Tensor, allowed: Tensor) -> Tensor:
        """(N,) the best allowed width of each row of Q-values (N, k)."""
        return values.masked_fill(~allowed, -torch.inf).argmax(dim=1) + 1


def blended(answer: Tensor, before: Tensor | None, blend: float) -> Tensor:
    """The answer after a look, logits (N, classes): (1 - blend) answer + blend before.

    Args:
        answer: what the look's path answers by itself. before: the answer before it, if any.
    """
    return answer if before is None or not blend else answer.lerp(before, blend)


def _padded(x: Tensor, channels: int) -> Tensor:
    """(N, channels, H, W): what is missing is zero, what is too much is cut off."""
    extra = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, extra)) if extra else x
