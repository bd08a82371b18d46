"""Builds a bundle's ONNX graphs: the plain network, and the pruned one with the agent inside.

The pruned graph runs one image along the path that the agent chooses, with no Python between
layers. A layer is a tree of `If` nodes over its input and output width, whose leaves hold the
folded weights of that pair as constants, so that the runtime packs them once. A leaf also encodes
its own maps for the agent, whose slice is constant there, and takes its cost off what remains.
With a glance, one more `If` is around all that: it answers with the glance, or starts again from
layer 0's maps.

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
    maps = network.straight(scope, range(network.config.n_layers), full, "image", "image")
    scope.rename(network.classify(scope, full, maps), "logits")
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
        self.table = bundle.card.table()
        self.costs = self.table.steps()
        self.glances = bundle.card.agent.glance
        self.full = self.scope.constant([self.config.groups - 1], np.int64)

    def build(self) -> OnnxGraph:
        start = self._start()
        logits, widths = (
            self._glance(start) if self.glances else self._path(self.scope, start, [self.full])
        )
        self.scope.rename(logits, "logits")
        one = self.scope.constant([1], np.int64)
        self.scope.rename(self.scope.op("Add", widths, one), "widths")
        inputs = [
            self.network.image(1),
            helper.make_tensor_value_info("penalty", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("cap_macs", TensorProto.INT64, [1]),
        ]
        outputs = [
            self.network.logits(1),
            helper.make_tensor_value_info("widths", TensorProto.INT64, [self.config.n_layers]),
        ]
        return self.scope.finish(inputs, outputs)

    def _start(self) -> _Step:
        """Layer 0; what remains at the first decision, and what it sees if not a glance."""
        full = self.config.groups - 1
        maps = self.network.layer(self.scope, 0, full, full, "image", None)
        spent = self.scope.constant([self.table.start], np.int64)
        remaining = self.scope.op("Sub", "cap_macs", spent)
        if self.glances or self.config.n_layers == 1:
            return _Step(maps, remaining)
        return _Step(maps, remaining, self.agent.encode(self.scope, 1, full, maps))

    def _glance(self, start: _Step) -> list[str]:
        """Logits and widths of the narrowest path if the agent stops there, else of a second."""
        n_layers = self.config.n_layers
        maps = self.network.straight(self.scope, range(1, n_layers), 0, "image", start.maps)
        glance = self.network.classify(self.scope, 0, maps)
        seen = self.agent.encode_glance(self.scope, glance, maps)
        width = self.agent.decide(self.scope, 1, self.full, seen, start.remaining)

        def branch(scope: Scope, goes_on: int) -> list[str]:
            if goes_on:
                return self._path(scope, start, [self.full, width])
            narrowest = scope.constant([0] * (n_layers - 1), np.int64)
            widths = scope.op("Concat", self.full, narrowest, axis=0)
            return [scope.op("Identity", glance), widths]

        outputs: list[Output] = [
            (TensorProto.FLOAT, [1, self.config.classes]),
            (TensorProto.INT64, [n_layers]),
        ]
        # All widths but the narrowest go on.
        return self.scope.choose([(width, range(2))], branch, outputs)

    def _path(self, scope: Scope, now: _Step, decided: list[str]) -> list[str]:
        """Logits and widths from layer 1 on; `decided` are the first of the widths."""
        before, widths = "image", decided
        for layer in range(1, self.config.n_layers):
            if layer == len(widths):
                width = self.agent.decide(scope, layer, widths[-1], now.encoded, now.remaining)
                widths = [*widths, width]
            shortcut = self.network.shortcut(scope, layer, before)
            before, now = now.maps, self._layer(scope, layer, widths, now, shortcut)
        logits = self._head(scope, widths[-1], now.maps)
        return [logits, scope.op("Concat", *widths, axis=0)]

    def _layer(
        self, scope: Scope, layer: int, widths: list[str], now: _Step, shortcut: str | None
    ) -> _Step:
        k = self.config.groups
        is_last = layer + 1 == self.config.n_layers

        def branch(scope: Scope, *widths: int) -> tuple[str, ...]:
            width = widths[0] if len(widths) == 2 else k - 1
            step = self._leaf(scope, layer, width, widths[-1], now, shortcut)
            return step[:1] if is_last else step

        axes = [*self._input_axes(layer, widths[layer - 1]), (widths[layer], self._cases(layer))]
        size = self.config.layers[layer].pooled_size(self.config.sizes()[layer])
        outputs: list[Output] = [
            (TensorProto.FLOAT, [1, None, size, size]),
            (TensorProto.INT64, [1]),
            (TensorProto.FLOAT, [1, self.agent.encoding]),
        ]
        return _Step(*scope.choose(axes, branch, outputs[:1] if is_last else outputs))

    def _cases(self, layer: int) -> range:
        """The widths that a layer is written for."""
        # Of layer 1 the narrowest is the glance itself.
        return range(1 if self.glances and layer == 1 else 0, self.config.groups)

    def _input_axes(self, layer: int, width: str) -> list[tuple[str, range]]:
        """What to choose a layer by, besides its own width: the width before it, if that varies."""
        # A choice by a constant must not be written: ONNX Runtime crashes when it folds an `If`
        # that holds another. The width before layer 1 is one, as layer 0 is never pruned.
        fixed = layer == 1 or self.config.whole_input(layer)
        return [] if fixed else [(width, self._cases(layer - 1))]

    def _leaf(
        self, scope: Scope, layer: int, i: int, o: int, now: _Step, shortcut: str | None
    ) -> _Step:
        maps = self.network.layer(scope, layer, i, o, now.maps, shortcut)
        if layer + 1 == self.config.n_layers:
            return _Step(maps)
        cost = scope.constant([self.costs[layer, i, o]], np.int64)
        encoded = self.agent.encode(scope, layer + 1, o, maps)
        return _Step(maps, scope.op("Sub", now.remaining, cost), encoded)

    def _head(self, scope: Scope, width: str, maps: str) -> str:
        k, n_layers = self.config.groups, self.config.n_layers
        features = self.network.features(scope, maps)

        def branch(scope: Scope, *widths: int) -> list[str]:
            return [self.network.first_linear(scope, widths[0] if widths else k - 1, features)]

        axes = self._input_axes(n_layers, width)
        output = (TensorProto.FLOAT, [1, self.config.linears[0]])
        (first,) = scope.choose(axes, branch, [output])
        return self.network.other_linears(scope, first)
