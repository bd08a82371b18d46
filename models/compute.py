"""Compute arithmetic: what a path costs, and which widths a cap still allows. No torch.

Counted are the multiply-accumulates (MACs) of convolutions and linear layers; 1 MAC = 2 FLOPs.
Normalisation is folded into the convolutions; ReLU, pooling and the gates of the recurrent cell
multiply nothing by a weight and are not counted, as in the literature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import (
    AgentConfig,
    BackboneConfig,
    check_paths,
    decisions,
    look_sizes,
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

FLOPS_PER_MAC = 2
# Times the full network's MACs: more than all paths together, and few enough for an int64.
NO_CAP = 1024.0


@dataclass(frozen=True)
class MacTable:
    """MACs of every step of a network, by the widths around it.

    A layer's MACs depend on its own width and on that of the layer before; where a residual block
    ends with a projection, on that of the layer before that one too.

    Attributes:
        layers: (L, k, k, k) int64, MACs of a layer by the width two layers before, the width one
            layer before, and its own.
        head: (k,) int64, MACs of the linear layers at the end by the last layer's width.
        agent: (L, k) int64, MACs of the agent's step before a layer by the layer's input width;
            zero where it decides nothing.
        decisions: the layers about which the agent decides on the way. Before the first of them
            all layers are whole; the others are tied, as wide as the layer two before.
        looks: MACs of each of the agent's paths and of the decision after it, if the agent chooses
            among whole paths.
    """

    layers: IntArray
    head: IntArray
    agent: IntArray
    decisions: tuple[int, ...]
    looks: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        return int(self.layers.shape[1])

    @cached_property
    def full(self) -> int:
        """MACs of the plain backbone, no agent."""
        return int(self.layers[:, -1, -1, -1].sum() + self.head[-1])

    @property
    def start(self) -> int:
        """MACs spent before the first decision."""
        if not self.decisions:
            return self.looks[0] if self.looks else self.full
        return int(self.layers[: self.decisions[0], -1, -1, -1].sum())

    @property
    def least(self) -> int:
        """MACs of the cheapest path, the agent included: no cap below it can be kept."""
        if not self.decisions:
            return self.start
        return self.start + int(self.after()[self.decisions[0], -1, -1].min())

    def settled(self) -> IntArray:
        """(L, k, k, k) int64, MACs of the backbone that a decision settles; else 0.

        These are its layer's, those of a tied layer after it, and at the last those of the end.
        """
        settled, every = np.zeros_like(self.layers), np.arange(self.groups)
        for layer in self.decisions:
            settled[layer] = self.layers[layer]
            end = np.broadcast_to(self.head, settled.shape[2:])
            if layer + 1 < len(self.layers) and layer + 1 not in self.decisions:
                # Its own width and that of two before are both the input width of this layer.
                settled[layer] += self.layers[layer + 1, every, :, every]
                end = end.T
            if layer == self.decisions[-1]:
                settled[layer] += end
        return settled

    def steps(self) -> IntArray:
        """(L, k, k, k) int64, MACs of a decision and of what it settles; 0 where none is made."""
        steps: IntArray = self.settled() + self.agent[:, None, :, None]
        return steps

    def after(self) -> IntArray:
        """(L, k, k, k) int64, the least MACs from a decision to the end once it is taken."""
        after: IntArray = self.with_least_rest(self.steps())
        return after

    def with_least_rest(self, steps: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Costs of decisions, (L, k, k, k), and the least that those after them must cost."""
        after, rest = np.zeros_like(steps), np.zeros_like(steps[0, 0])
        for layer in range(len(steps) - 1, 0, -1):
            if layer in self.decisions:
                after[layer] = steps[layer] + rest
                rest = after[layer].min(axis=2)
            else:
                rest = rest.T
        return after


def mac_table(backbone: BackboneConfig, agent: AgentConfig) -> MacTable:
    """Count a network's MACs from its dimensions.

    Raises:
        ValueError: the agent's paths are not of the backbone, or not sorted.
    """
    check_paths(backbone, agent)
    k, decided = backbone.groups, decisions(backbone, agent)
    layers = np.stack([_layer_macs(backbone, index) for index in range(backbone.n_layers)])
    steps = np.zeros((backbone.n_layers, k), np.int64)
    for index in decided:
        steps[index] = [
            agent_step_macs(agent, backbone.in_channels(index, width), k)
            for width in range(1, k + 1)
        ]
    pixels = backbone.pool_to**2
    head = [
        _linear_macs(backbone.in_channels(backbone.n_layers, width) * pixels, backbone.linears)
        for width in range(1, k + 1)
    ]
    table = MacTable(layers, np.array(head, np.int64), steps, tuple(decided))
    if agent.form != "paths":
        return table
    choices = [
        _linear_macs(first, tuple(rest)) if look < agent.deciding else 0
        for look in range(len(agent.paths))
        for first, *rest in [look_sizes(backbone, agent, look)]
    ]
    macs = path_macs(np.array(agent.paths, np.int64), table, agent=False)
    if (np.diff(macs) <= 0).any():
        raise ValueError("the agent's paths are not sorted by rising MACs")
    return replace(table, looks=tuple((macs + choices).tolist()))


def _layer_macs(backbone: BackboneConfig, index: int) -> IntArray:
    """(k, k, k) int64, MACs of a layer by the widths two before, one before, and its own."""
    widths = range(1, backbone.groups + 1)
    layer, positions = backbone.layers[index], backbone.sizes()[index] ** 2
    read = np.array([backbone.in_channels(index, width) for width in widths], np.int64)
    computed = np.array([backbone.out_channels(index, width) for width in widths], np.int64)
    own = np.outer(read, computed) * layer.kernel**2 * positions
    projected = np.zeros_like(own)
    if backbone.projection(index):
        block = [backbone.in_channels(index - 1, width) for width in widths]
        projected = np.outer(np.array(block, np.int64), computed) * positions
    macs: IntArray = own[None, :, :] + projected[:, None, :]
    return macs


def agent_step_macs(agent: AgentConfig, features: int, groups: int) -> int:
    """MACs of one decision on `features` pooled input features: encoder, GRU cell, decoder."""
    cell = 3 * agent.hidden * (agent.cell_inputs + agent.hidden)
    return features * agent.encoding + cell + agent.hidden * groups


def _linear_macs(features: int, linears: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip((features, *linears), linears, strict=False))


def path_macs(widths: IntArray, table: MacTable, *, agent: bool) -> IntArray:
    """MACs of each image's path.

    Args:
        widths: (N, L) int, groups computed per layer, each in 1..k.
        table: the network's MACs.
        agent: whether the agent's decisions on the way are counted; an agent that chooses among
            whole paths makes none, what it spends is a sum of `MacTable.looks`.
    Returns: (N,) int64, multiply-accumulates.
    """
    own = np.asarray(widths, np.int64) - 1
    whole = np.full((len(own), 2), table.groups - 1)
    padded, layers = np.concatenate([whole, own], axis=1), np.arange(own.shape[1])
    earlier, before = padded[:, :-2], padded[:, 1:-1]
    macs: IntArray = table.layers[layers, earlier, before, own].sum(axis=1) + table.head[own[:, -1]]
    if agent:
        macs = macs + table.agent[layers, before].sum(axis=1)
    return macs


def cap_macs(cap: FloatArray | float, full: int) -> IntArray:
    """The most MACs an image may spend under a cap, a share of `full`, infinite for none; int64."""
    shares = np.minimum(np.asarray(cap, np.float64), NO_CAP)
    result: IntArray = np.floor(shares * full).astype(np.int64)
    return result


def step_price(table: MacTable, form: str) -> npt.NDArray[np.float32]:
    """(L, k, k, k) float32, what a penalty of 1 charges for a decision.

    The paper's: the number of groups. Otherwise the share of the full network's MACs that it
    settles (`MacTable.settled`).
    """
    if form == "paper":
        groups = np.zeros(table.layers.shape, np.float32)
        groups[list(table.decisions)] = np.arange(1, table.groups + 1)
        return groups
    return (table.settled() / table.full).astype(np.float32)


def price(table: MacTable, form: str) -> npt.NDArray[np.float32]:
    """(L, k, k, k) float32, `step_price` and the least that the decisions after must charge."""
    return table.with_least_rest(step_price(table, form).astype(np.float64)).astype(np.float32)


def look_price(table: MacTable) -> npt.NDArray[np.float32]:
    """(M,) float32, what a penalty of 1 charges for running each of the agent's paths.

    The share of the full network's MACs that the path and the decision after it take.
    """
    return (np.array(table.looks) / table.full).astype(np.float32)
