"""Builds a bundle's ONNX graphs.

For an agent that runs whole paths: one graph with a branch for each, which also tells the path that
the agent chooses next. An agent that decides layer by layer is inside its graph, which
runs one image with no Python between layers: a layer is a tree of `If` nodes over its input and
output width, whose leaves hold the folded weights of that pair as constants, so that the runtime
packs them once. A leaf also encodes its own maps for the agent, whose slice is constant there.

Inside the graphs widths count from 0, so that they index tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, helper

from models.bundle import Bundle
from service.engines.onnx_agents import LayerAgentWriter, write_choice
from service.engines.onnx_parts import NetworkWriter
from service.engines.onnx_scope import OnnxGraph, Output, Scope, Width


def path_graph(bundle: Bundle, path: Sequence[int]) -> OnnxGraph:
    """The network along one path of L widths, which count from 1 here.

    Inputs: image (N, 3, H, W) float32.
    Outputs: logits (N, C) float32.
    """
    wiring = _Wiring(bundle)
    logits, _ = wiring.along(path)
    wiring.scope.rename(logits, "logits")
    return wiring.scope.finish([wiring.network.image("N")], [wiring.network.logits("N")])


def paths_graph(bundle: Bundle) -> OnnxGraph:
    """The network along that of the agent's paths which is asked for.

    Inputs: image (N, 3, H, W) float32, path (1,) int64: its number, penalty (N, 1) float32, and
        left (N, 1) int64: the MACs that may be spent after it; if answers are blended, before
        (N, C) float32: the answer before, of which the first path takes no notice.
    Outputs: logits (N, C) float32, the answer, and chosen (N,) int64: the path to run next, or the
        same to stop. Where the agent does not decide, logits are the path's own, not blended, and
        chosen is only (1,).
    """
    wiring, agent = _Wiring(bundle), bundle.card.agent

    def write(scope: Scope, number: int) -> list[str]:
        logits, maps = _Wiring(bundle, scope).along(agent.paths[number])
        if number >= agent.deciding:
            return [logits, scope.index(number)]
        if number and agent.blend:
            parts = (logits, 1 - agent.blend), ("before", agent.blend)
            weighed = [scope.op("Mul", value, scope.constant([part])) for value, part in parts]
            logits = scope.op("Add", *weighed)
        return [logits, write_choice(scope, bundle, number, logits, maps)]

    outputs: list[Output] = [
        (TensorProto.FLOAT, [None, wiring.config.classes]),
        (TensorProto.INT64, [None]),
    ]
    # Most images are run along the first path, and its time is the shortest.
    wiring.scope.choose_early("path", len(agent.paths), write, outputs, ["logits", "chosen"])
    inputs = [
        wiring.network.image("N"),
        helper.make_tensor_value_info("path", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("penalty", TensorProto.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("left", TensorProto.INT64, ["N", 1]),
    ]
    if agent.blend:
        shape = "N", wiring.config.classes
        inputs.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, shape))
    chosen = helper.make_tensor_value_info("chosen", TensorProto.INT64, [None])
    return wiring.scope.finish(inputs, [wiring.network.logits("N"), chosen])


def pruned_graph(bundle: Bundle) -> OnnxGraph:
    """The network along the path that the agent decides layer by layer for one image.

    Inputs: image (1, 3, H, W) float32, penalty (1,) float32, and cap_macs (1,) int64: the MACs
        that may be spent, the agent's included.
    Outputs: logits (1, C) float32, widths (L,) int64.
    """
    wiring = _Wiring(bundle)
    logits, widths = wiring.decided(LayerAgentWriter(bundle, wiring.scope))
    wiring.scope.rename(logits, "logits")
    wiring.scope.rename(widths, "widths")
    inputs = [
        wiring.network.image(1),
        helper.make_tensor_value_info("penalty", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("cap_macs", TensorProto.INT64, [1]),
    ]
    outputs = [
        wiring.network.logits(1),
        helper.make_tensor_value_info("widths", TensorProto.INT64, [wiring.config.n_layers]),
    ]
    return wiring.scope.finish(inputs, outputs)


class _Wiring:
    """A network whose widths are known, or are decided on the way."""

    def __init__(self, bundle: Bundle, scope: Scope | None = None) -> None:
        self.scope = scope or Scope()
        self.network = NetworkWriter(bundle)
        self.config = bundle.card.backbone
        full = self.config.groups - 1
        self.start: list[Width] = [full, full]

    def along(self, path: Sequence[int]) -> tuple[str, str]:
        """Logits and last maps of a path whose widths count from 1."""
        widths = list(self.start)
        block = maps = "image"
        for layer, width in enumerate(path):
            widths.append(width - 1)
            block, (maps,) = maps, self._layer(layer, widths, block, maps)
        return self._classify(widths[-1], maps), maps

    def decided(self, agent: LayerAgentWriter) -> tuple[str, str]:
        """Logits, and widths that count from 1, of the path that an agent decides."""
        widths = list(self.start)
        block = maps = "image"
        seen: list[str] = []
        for layer in range(self.config.n_layers):
            # Before the first decision all is whole, and so is what a tied layer is tied to.
            *_, width, before = widths
            if layer in agent.decisions:
                width = agent.decide(layer, width, before, *seen)
            widths.append(width)
            block, (maps, *seen) = maps, self._layer(layer, widths, block, maps, agent)
        indices = [self.scope.index(width) for width in widths[2:]]
        chosen = self.scope.op("Concat", *indices, axis=0)
        counted = self.scope.op("Add", chosen, self.scope.index(1))
        return self._classify(widths[-1], maps), counted

    def _layer(
        self,
        layer: int,
        widths: list[Width],
        block: str,
        maps: str,
        agent: LayerAgentWriter | None = None,
    ) -> list[str]:
        """A layer's maps and, if the agent decides next, what it sees of them."""
        *_, before, own = widths
        shortcut = self._shortcut(layer, widths, block)
        seen_by = agent if agent and layer + 1 in agent.decisions else None

        def write(scope: Scope, before: int, own: int) -> list[str]:
            result = self.network.layer(scope, layer, before, own, maps, shortcut)
            return [result, *([seen_by.encode(scope, layer + 1, own, result)] if seen_by else [])]

        size = self.config.layers[layer].pooled_size(self.config.sizes()[layer])
        outputs: list[Output] = [(TensorProto.FLOAT, [1, None, size, size])]
        if seen_by:
            outputs.append((TensorProto.FLOAT, [1, seen_by.encoding]))
        return self.scope.choose([before, own], self.config.groups, write, outputs)

    def _shortcut(self, layer: int, widths: list[Width], block: str) -> str | None:
        """What a layer that ends a block adds of the block's input."""
        kind = self.config.layers[layer].shortcut
        if kind is None:
            return None
        if kind == "identity":
            return block
        *_, earlier, _, own = widths

        def write(scope: Scope, earlier: int, own: int) -> list[str]:
            return [self.network.shortcut(scope, layer, earlier, own, block)]

        size = self.config.sizes()[layer]
        output = (TensorProto.FLOAT, [1, None, size, size])
        return self.scope.choose([earlier, own], self.config.groups, write, [output])[0]

    def _classify(self, width: Width, maps: str) -> str:
        """Logits of the last maps."""
        features = self.network.features(self.scope, maps)

        def write(scope: Scope, width: int) -> list[str]:
            return [self.network.first_linear(scope, width, features)]

        output = (TensorProto.FLOAT, [1, self.config.linears[0]])
        (first,) = self.scope.choose([width], self.config.groups, write, [output])
        return self.network.other_linears(self.scope, first)
