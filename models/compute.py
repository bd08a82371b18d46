"""Compute arithmetic: what a path costs, and which widths a cap still allows. No torch.

Counted are the multiply-accumulates (MACs) of convolutions and linear layers; 1 MAC = 2 FLOPs.
Normalisation is folded into the convolutions; ReLU, pooling and the gates of the recurrent cell
multiply nothing by a weight and are not counted, as in the literature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.config import AgentConfig, BackboneConfig, state_features

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class MacTable:
    """MACs of every step of a network, by the widths around it.

    Attributes:
        layers: (L, k, k) int64, MACs of a layer by input and output width.
        head: (k,) int64, MACs of the linear layers at the end by the last layer's width.
        agent: (L, k) int64, MACs of the agent's step before a layer by the layer's input width;
            zero for layer 0, which is never pruned.
        glance: MACs of the narrowest path after layer 0 if it is run first, else 0.
    """

    layers: IntArray
    head: IntArray
    agent: IntArray
    glance: int = 0

    @property
    def groups(self) -> int:
        return int(self.layers.shape[1])

    @property
    def full(self) -> int:
        """MACs of the plain backbone, no agent."""
        return int(self.layers[:, -1, -1].sum() + self.head[-1])

    @property
    def start(self) -> int:
        """MACs spent before the first decision."""
        return int(self.layers[0, -1, -1]) + self.glance

    @property
    def least(self) -> int:
        """MACs of the cheapest path, the agent included: no cap below it can be kept."""
        return self.start + int(self.rest()[1, -1])

    def steps(self) -> IntArray:
        """(L, k, k) int64, MACs of a layer and of the agent's decision about it.

        After a glance, width 1 of layer 1 costs the decision alone: the glance is the answer.
        """
        steps: IntArray = self.layers + self.agent[:, :, None]
        if self.glance:
            steps[1, :, 0] = self.agent[1]
        return steps

    def rest(self) -> IntArray:
        """(L + 1, k) int64, the least MACs of layers l to the end by layer l's input width."""
        after = self.after()
        return np.concatenate([after.min(axis=2), self.head[None]])

    def after(self) -> IntArray:
        """(L, k, k) int64, the least MACs from a layer to the end once its widths are chosen."""
        after = self.steps()
        least = self.head
        for layer in range(len(after) - 1, -1, -1):
            after[layer] += least
            if self.glance and layer == 1:
                after[1, :, 0] = self.agent[1]
            least = after[layer].min(axis=1)
        return after


def mac_table(backbone: BackboneConfig, agent: AgentConfig) -> MacTable:
    """Count a network's MACs from its dimensions.

    Raises:
        ValueError: the agent wants a glance where nothing can be pruned.
    """
    k, widths = backbone.groups, range(1, backbone.groups + 1)
    sizes = backbone.sizes()
    layers = np.zeros((backbone.n_layers, k, k), np.int64)
    decisions = np.zeros((backbone.n_layers, k), np.int64)
    for index, layer in enumerate(backbone.layers):
        positions = sizes[index] ** 2
        for i in widths:
            read = backbone.in_channels(index, i)
            if index > 0:
                features = state_features(backbone, agent, index, i)
                decisions[index, i - 1] = agent_step_macs(agent, features, k)
            for o in widths:
                computed = backbone.out_channels(index, o)
                layers[index, i - 1, o - 1] = read * computed * layer.kernel**2 * positions
        if layer.shortcut == "project":
            # The projection reads the block's input, which is the input of the layer before.
            fan_in = backbone.layers[index - 1].in_channels
            layers[index] += fan_in * layer.out_channels * positions
    pixels = backbone.pool_to**2
    head = [
        _linear_macs(backbone.in_channels(backbone.n_layers, width) * pixels, backbone.linears)
        for width in widths
    ]
    table = MacTable(layers, np.array(head, np.int64), decisions)
    if not agent.glance:
        return table
    if backbone.n_layers < 2 or k < 2:
        raise ValueError(f"backbone {backbone.name} has no narrower path to glance along")
    narrowest = np.ones((1, backbone.n_layers), np.int64)
    narrowest[:, 0] = k
    glance = int(path_macs(narrowest, table, agent=False)[0] - layers[0, -1, -1])
    return replace(table, glance=glance)


def agent_step_macs(agent: AgentConfig, features: int, groups: int) -> int:
    """MACs of one decision on `features` pooled input features: encoder, GRU cell, decoder."""
    cell = 3 * agent.hidden * (agent.cell_inputs + agent.hidden)
    return features * agent.encoding + cell + agent.hidden * groups


def _linear_macs(features: int, linears: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip((features, *linears), linears, strict=False))


def path_macs(widths: IntArray, table: MacTable, *, agent: bool) -> IntArray:
    """MACs of each image's path.

    Args:
        widths: (N, L) int, groups computed per layer, each in 1..k, the first layer's k.
        table: the network's MACs.
        agent: whether the agent's own decisions are counted.
    Returns: (N,) int64, multiply-accumulates.
    """
    chosen = np.asarray(widths, np.int64) - 1
    before = np.concatenate([np.full_like(chosen[:, :1], table.groups - 1), chosen[:, :-1]], axis=1)
    steps = table.steps() if agent else table.layers
    each = steps[np.arange(chosen.shape[1]), before, chosen]
    macs: IntArray = each.sum(axis=1) + table.head[chosen[:, -1]]
    if agent and table.glance:
        stopped = each[:, :2].sum(axis=1)
        macs = np.where(chosen[:, 1] == 0, stopped, macs) + table.glance
    return macs


def agent_macs(widths: IntArray, table: MacTable) -> IntArray:
    """(N,) int64, MACs spent on choosing each path of (N, L) widths: agent, and glance if vain."""
    return path_macs(widths, table, agent=True) - path_macs(widths, table, agent=False)


def cap_macs(cap: FloatArray | float, full: int) -> IntArray:
    """The most MACs an image may spend under a cap, a share of `full` in (0, 1]; int64."""
    result: IntArray = np.floor(np.asarray(cap, np.float64) * full).astype(np.int64)
    return result


def step_price(table: MacTable, form: str) -> npt.NDArray[np.float32]:
    """(L, k, k) float32, what a penalty of 1 charges for a layer's width.

    Ours: the share of the full network's MACs that the action costs, given the width before it;
    the last layer's includes the linear layers after it; what a glance spent is not charged to
    going with its answer. The paper's: the number of groups.
    """
    if form == "paper":
        groups = np.arange(1, table.groups + 1, dtype=np.float32)
        return np.broadcast_to(groups, table.layers.shape).astype(np.float32)
    macs = table.layers.copy()
    macs[-1] += table.head
    if table.glance:
        macs[1, :, 0] = 0
    return (macs / table.full).astype(np.float32)


def price(table: MacTable, form: str) -> npt.NDArray[np.float32]:
    """(L, k, k) float32, `step_price` and the least that the layers after it must charge."""
    steps = step_price(table, form).astype(np.float64)
    total, rest = np.empty_like(steps), np.zeros(table.groups)
    for layer in range(len(steps) - 1, -1, -1):
        total[layer] = steps[layer] + rest
        if table.glance and layer == 1:
            total[1, :, 0] = 0
        rest = total[layer].min(axis=1)
    return total.astype(np.float32)
