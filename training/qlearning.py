"""An agent that decides layer by layer, by Q-learning on a frozen backbone.

An episode is one image's way through the network. The state before a layer is the pooled feature
map that enters it, with the recurrent memory of those before; the action is the layer's width; the
reward is minus the action's price, and at the last layer also what the path did to the loss. The
value of a state beyond the last layer is zero: the terminal step does not bootstrap.

Where we knowingly differ from the paper (Lin et al., NIPS 2017), unless `agent.form` is "paper":
1. The penalty is an input, drawn anew for every episode each time it is learnt from (the reward
   of a recorded path is known for every penalty), so that one agent serves every budget.
2. It prices the MACs that the action really costs, not the number of groups.
3. The terminal reward is the full network's loss on this image minus the path's: the optimum
   stays, the variance falls. (The paper's is minus α times the path's loss. Only α's ratio to its
   penalty matters, so α is 1 here.)
In both forms:
4. Episodes are kept and learnt from again: the backbone is frozen, so they stay true.
5. A random episode has all its widths scattered around one drawn level: independent widths would
   nearly all cost the same. Their share is ε, but never less than a quarter; in the others each
   action is random with a chance of ε / 2. ε falls from 1 to `agent.epsilon`.
6. The best next action is chosen by the learning network and valued by its target network, a
   copy that follows slowly (double Q-learning; van Hasselt et al., AAAI 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.agent import LayerAgent
from models.network import Greedy, Network, Trace
from training.supernet import draw_paths


@dataclass(frozen=True)
class Episodes:
    """Recorded ways of M images.

    Attributes:
        pooled: for each decision, (M, C) float16, the pooled input of its layer.
        widths: (M, L) int64.
        loss: (M,) cross-entropy at the end of the path.
        baseline: (M,) cross-entropy of the full network on the same image.
    """

    pooled: list[Tensor]
    widths: Tensor
    loss: Tensor
    baseline: Tensor

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, rows: Tensor) -> Episodes:
        pooled = [p[rows] for p in self.pooled]
        return Episodes(pooled, self.widths[rows], self.loss[rows], self.baseline[rows])

    def to(self, device: torch.device) -> Episodes:
        """The same on a device."""
        pooled = [p.to(device) for p in self.pooled]
        rest = (part.to(device) for part in (self.widths, self.loss, self.baseline))
        return Episodes(pooled, *rest)

    @staticmethod
    def concatenate(parts: list[Episodes]) -> Episodes:
        """All episodes of several recordings, in order."""
        pooled = [torch.cat(layers) for layers in zip(*(p.pooled for p in parts), strict=True)]
        return Episodes(
            pooled,
            torch.cat([p.widths for p in parts]),
            torch.cat([p.loss for p in parts]),
            torch.cat([p.baseline for p in parts]),
        )


class Explorer(Greedy):
    """Follows the agent, but takes a share `epsilon` of the actions at random.

    A share `random_share` of the images follows a wholly random path instead.
    """

    def __init__(
        self,
        network: Network,
        penalty: Tensor,
        *,
        random_share: float,
        epsilon: float,
        generator: torch.Generator,
    ) -> None:
        uncapped = torch.full_like(penalty, torch.inf)
        super().__init__(layer_agent(network), network.table, penalty, uncapped)
        backbone, images = network.backbone, len(penalty)
        self.epsilon, self.generator = epsilon, generator
        script = draw_paths(images, backbone, generator)
        script[:, 0] = backbone.groups
        self.script = script.to(penalty.device)
        scripted = torch.rand(images, generator=generator) < random_share
        self.scripted = scripted.to(penalty.device)

    def __call__(self, layer: int, pooled: Tensor, earlier: Tensor, before: Tensor) -> Tensor:
        """Widths (N,) of a layer."""
        width = super().__call__(layer, pooled, earlier, before)
        return torch.where(self.scripted, self.script[:, layer], width)

    def pick(self, values: Tensor, allowed: Tensor) -> Tensor:
        """(N,) the best width of each row, or a random one."""
        best = super().pick(values, allowed)
        random = torch.randint(1, values.shape[1] + 1, best.shape, generator=self.generator)
        explore = torch.rand(best.shape, generator=self.generator) < self.epsilon
        return torch.where(explore.to(best.device), random.to(best.device), best)


def layer_agent(network: Network) -> LayerAgent:
    """The network's agent, which decides layer by layer."""
    assert isinstance(network.agent, LayerAgent)
    return network.agent


def draw_penalty(images: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Penalties (N,), uniform in their logarithm."""
    spread = math.log(high / low)
    return low * torch.exp(torch.rand(images, generator=generator) * spread)


@torch.no_grad()
def record(
    network: Network,
    images: Tensor,
    labels: Tensor,
    penalty: Tensor,
    *,
    ways: int,
    random_share: float,
    epsilon: float,
    generator: torch.Generator,
    autocast: torch.autocast,
) -> Episodes:
    """Send each image of a batch along `ways` paths, a share of them random.

    Args:
        network: frozen, best folded.
        penalty: (N · ways,) what the agent is told.
        random_share: share of the episodes that take a wholly random path.
        epsilon: chance of a random action in the others.
    """
    backbone = network.backbone
    with autocast:
        usual = network(images, [backbone.groups] * backbone.n_layers).float()
    baseline = F.cross_entropy(usual, labels, reduction="none")
    recorded = []
    for part in penalty.chunk(ways):
        explorer = Explorer(
            network, part, random_share=random_share, epsilon=epsilon, generator=generator
        )
        with autocast:
            logits, trace = network.run(images, explorer)
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        recorded.append(_episodes(trace, loss, baseline))
    return Episodes.concatenate(recorded)


def _episodes(trace: Trace, loss: Tensor, baseline: Tensor) -> Episodes:
    return Episodes([p.half() for p in trace.seen], trace.widths, loss, baseline)


def _around(agent: LayerAgent, widths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widths (M, D) two before, one before and of the layer of each decision, of paths (M, L)."""
    layers = torch.tensor(agent.layers)
    # Layer 0 is whole, and before it so is the image.
    return widths[:, (layers - 2).clamp(min=0)], widths[:, layers - 1], widths[:, layers]


def q_values(agent: LayerAgent, episodes: Episodes, penalty: Tensor) -> Tensor:
    """Values (M, D, k) of every width at every decision along recorded paths."""
    hidden = agent.start(len(episodes))
    earlier, before, _ = _around(agent, episodes.widths)
    values = []
    for number, (layer, pooled) in enumerate(zip(agent.layers, episodes.pooled, strict=True)):
        around = earlier[:, number], before[:, number]
        value, hidden = agent(layer, pooled.float(), *around, penalty, hidden)
        values.append(value)
    return torch.stack(values, dim=1)


def rewards(agent: LayerAgent, episodes: Episodes, penalty: Tensor, prices: Tensor) -> Tensor:
    """Rewards (M, D) of the recorded actions.

    Args:
        penalty: (M,) price of compute, or of one group in the paper's form.
        prices: (L, k, k, k) from `models.compute.step_price`.
    """
    earlier, before, own = _around(agent, episodes.widths)
    paid = -penalty[:, None] * prices[torch.tensor(agent.layers), earlier - 1, before - 1, own - 1]
    paper = agent.config.form == "paper"
    ending = -episodes.loss if paper else episodes.baseline - episodes.loss
    return torch.cat([paid[:, :-1], paid[:, -1:] + ending[:, None]], dim=1)


def bellman_loss(
    agent: LayerAgent, target: LayerAgent, episodes: Episodes, penalty: Tensor, prices: Tensor
) -> Tensor:
    """Mean squared Bellman error of the recorded actions.

    Args:
        target: the copy of the agent that values the next state.
        penalty, prices: see `rewards`.
    """
    # The paper's agent is not told its penalty: a penalty told to it is one more, after training.
    told = torch.zeros_like(penalty) if agent.config.form == "paper" else penalty
    values = q_values(agent, episodes, told)
    actions = episodes.widths[:, list(agent.layers), None] - 1
    taken = values.gather(2, actions)[:, :, 0]
    with torch.no_grad():
        best = values.argmax(dim=2, keepdim=True)
        following = q_values(target, episodes, told).gather(2, best)[:, 1:, 0]
        td_target = rewards(agent, episodes, penalty, prices)
        td_target[:, :-1] += following
    return F.mse_loss(taken, td_target)


def minibatches(episodes: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of shuffled minibatches of one pass over the episodes; the rest is left out."""
    order = torch.randperm(episodes, generator=generator)
    for start in range(0, episodes - size + 1, size):
        yield order[start : start + size]
