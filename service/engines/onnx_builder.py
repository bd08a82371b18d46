"""Builds a bundle's ONNX graphs: the plain network, and the pruned one with the agent inside.

The pruned graph runs one image along the path that the agent chooses, with no Python between
layers. A layer is a tree of `If` nodes over its input and output width, whose leaves hold the
folded weights of that pair as constants, so that the runtime packs them once. A leaf also encodes
its own maps for the agent, whose slice is constant there, and takes its cost off what remains.

Inside the graphs widths count from 0, so that they index tables.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from models.bundle import Bundle
from service.engines.onnx_parts import AgentWriter, NetworkWriter
from service.engines.onnx_scope import OnnxGraph, Output, Scope


class _Step(NamedTuple):
    """Where a pruned graph stands after a layer: names of values.

    Attributes:
        maps: (1, c, H, W), the computed prefix.
        remaining: (1,) int64, the MACs that may still be spent.
        encoded: (1, encoding), the maps as the agent sees them.
    """

    maps: str
    remaining: str = ""
    encoded: str = ""


def plain_graph(bundle: Bundle) -> OnnxGraph:
    """The network at full width; the agent is not consulted.

    Inputs: image (N, 3, H, W) float32.
    Outputs: logits (N, C) float32.
    """
    scope, network = Scope(), NetworkWriter(bundle)
    full = network.config.groups - 1
    before = maps = "image"
    for layer in range(network.config.n_layers):
        shortcut = network.shortcut(scope, layer, before)
        before, maps = maps, network.layer(scope, layer, full, full, maps, shortcut)
    first = network.first_linear(scope, full, network.features(scope, maps))
    scope.rename(network.other_linears(scope, first), "logits")
    return scope.finish([network.image("N")], [network.logits("N")])


def pruned_graph(bundle: Bundle) -> OnnxGraph:
    """The network along the path that the agent chooses for one image.

    Inputs: image (1, 3, H, W) float32, penalty (1,) float32, and cap_macs (1,) int64: the MACs
        that may be spent, the agent's included.
    Outputs: logits (1, C) float32, widths (L,) int64.
    """
    return _PrunedGraph(bundle).build()


class _PrunedGraph:
    """Wires network and agent together, layer by layer."""

    def __init__(self, bundle: Bundle) -> None:
        self.scope = Scope()
        self.network = NetworkWriter(bundle)
        self.agent = AgentWriter(bundle, self.scope)
        self.config = bundle.card.backbone
        self.costs = bundle.card.table().steps()

    def build(self) -> OnnxGraph:
        full = self.config.groups - 1
        before = "image"
        widths = [self.scope.constant([full], np.int64)]
        now = self._leaf(self.scope, 0, full, full, _Step("image", "cap_macs"), None)
        for layer in range(1, self.config.n_layers):
            widths.append(self.agent.decide(layer, widths[-1], now.encoded, now.remaining))
            shortcut = self.network.shortcut(self.scope, layer, before)
            before, now = now.maps, self._layer(layer, widths[-2], widths[-1], now, shortcut)
        self.scope.rename(self._head(widths[-1], now.maps), "logits")
        self.scope.rename(self._counted(widths), "widths")
        inputs = [
            self.network.image(1),
            helper.make_tensor_value_info("penalty", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("cap_macs", TensorProto.INT64, [1]),
        ]
        outputs = [
            self.network.logits(1),
            helper.make_tensor_value_info("widths", TensorProto.INT64, [len(widths)]),
        ]
        return self.scope.finish(inputs, outputs)

    def _layer(self, layer: int, i: str, o: str, now: _Step, shortcut: str | None) -> _Step:
        k = self.config.groups
        is_last = layer + 1 == self.config.n_layers

        def branch(scope: Scope, *widths: int) -> tuple[str, ...]:
            width = widths[0] if len(widths) == 2 else k - 1
            step = self._leaf(scope, layer, width, widths[-1], now, shortcut)
            return step[:1] if is_last else step

        axes = [*self._input_axes(layer, i), (o, k)]
        size = self.config.layers[layer].pooled_size(self.config.sizes()[layer])
        outputs: list[Output] = [
            (TensorProto.FLOAT, [1, None, size, size]),
            (TensorProto.INT64, [1]),
            (TensorProto.FLOAT, [1, self.agent.encoding]),
        ]
        return _Step(*self.scope.choose(axes, branch, outputs[:1] if is_last else outputs))

    def _input_axes(self, layer: int, width: str) -> list[tuple[str, int]]:
        """What to choose a layer by, besides its own width: the width before it, if that varies."""
        # A choice by a constant must not be written: ONNX Runtime crashes when it folds an `If`
        # that holds another. The width before layer 1 is one, as layer 0 is never pruned.
        fixed = layer == 1 or self.config.whole_input(layer)
        return [] if fixed else [(width, self.config.groups)]

    def _leaf(
        self, scope: Scope, layer: int, i: int, o: int, now: _Step, shortcut: str | None
    ) -> _Step:
        maps = self.network.layer(scope, layer, i, o, now.maps, shortcut)
        if layer + 1 == self.config.n_layers:
            return _Step(maps)
        cost = scope.constant([self.costs[layer, i, o]], np.int64)
        encoded = self.agent.encode(scope, layer + 1, o, maps)
        return _Step(maps, scope.op("Sub", now.remaining, cost), encoded)

    def _head(self, width: str, maps: str) -> str:
        k, n_layers = self.config.groups, self.config.n_layers
        features = self.network.features(self.scope, maps)

        def branch(scope: Scope, *widths: int) -> list[str]:
            return [self.network.first_linear(scope, widths[0] if widths else k - 1, features)]

        axes = self._input_axes(n_layers, width)
        output = (TensorProto.FLOAT, [1, self.config.linears[0]])
        (first,) = self.scope.choose(axes, branch, [output])
        return self.network.other_linears(self.scope, first)

    def _counted(self, widths: list[str]) -> str:
        positions = self.scope.op("Concat", *widths, axis=0)
        return self.scope.op("Add", positions, self.scope.constant([1], np.int64))
