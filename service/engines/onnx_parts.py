"""What the ONNX graphs consist of: the backbone's and the agent's parts, for given widths.

Widths count from 0 here, so that they index tables.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.bundle import Bundle
from models.compute import price
from models.config import GLANCE_TOP, PENALTY_MIDPOINT
from service.engines.base import Floats
from service.engines.onnx_scope import Scope


class NetworkWriter:
    """Writes the backbone's parts, each for the widths that it is given."""

    def __init__(self, bundle: Bundle) -> None:
        self.config = bundle.card.backbone
        self._tensors = bundle.tensors

    def image(self, n: int | str) -> onnx.ValueInfoProto:
        """The graph's input: (n, 3, H, W) float32."""
        size = self.config.image_size
        channels = self.config.layers[0].in_channels
        return helper.make_tensor_value_info("image", TensorProto.FLOAT, [n, channels, size, size])

    def logits(self, n: int | str) -> onnx.ValueInfoProto:
        """The graph's output: (n, classes) float32."""
        return helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, self.config.classes])

    def straight(self, scope: Scope, layers: range, width: int, before: str, maps: str) -> str:
        """Layers at one width, from whole maps; `before` entered the layer that computed these."""
        i = self.config.groups - 1
        for layer in layers:
            shortcut = self.shortcut(scope, layer, before)
            before, maps = maps, self.layer(scope, layer, i, width, maps, shortcut)
            i = width
        return maps

    def layer(
        self, scope: Scope, layer: int, i: int, o: int, maps: str, shortcut: str | None
    ) -> str:
        """Convolution, normalisation, shortcut, ReLU and pooling."""
        config = self.config.layers[layer]
        weight, bias = self._folded(layer, i, o)
        result = _convolve(scope, maps, weight, bias, config.stride, config.padding)
        if shortcut is not None:
            missing = config.out_channels - self.config.out_channels(layer, o + 1)
            result = scope.op("Add", _pad_channels(scope, result, missing), shortcut)
        result = scope.op("Relu", result)
        if config.pool is None:
            return result
        kernel, stride, padding = config.pool
        return scope.op(
            "MaxPool", result, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4
        )

    def shortcut(self, scope: Scope, layer: int, maps: str) -> str | None:
        """What a layer that ends a block adds of the block's input."""
        config = self.config.layers[layer]
        if config.shortcut is None:
            return None
        stride = self.config.layers[layer - 1].stride
        if config.shortcut == "project":
            weight = self._floats(f"projection.{layer}.weight")
            bias = self._floats(f"projection.{layer}.bias")
            return _convolve(scope, maps, weight, bias, stride, 0)
        if config.shortcut == "pad":
            # Pooling over single pixels subsamples.
            maps = scope.op("MaxPool", maps, kernel_shape=[1, 1], strides=[stride] * 2)
            missing = config.out_channels - self.config.layers[layer - 1].in_channels
            return _pad_channels(scope, maps, missing)
        return maps

    def features(self, scope: Scope, maps: str) -> str:
        """The last maps pooled and flattened, channel by channel."""
        size, pool_to = self.config.sizes()[-1], self.config.pool_to
        if pool_to == 1:
            maps = scope.op("GlobalAveragePool", maps)
        elif size != pool_to:
            means = _adaptive_means(size, pool_to)
            rows = scope.op("MatMul", scope.constant(means), maps)
            maps = scope.op("MatMul", rows, scope.constant(means.T))
        return scope.op("Flatten", maps)

    def classify(self, scope: Scope, i: int, maps: str) -> str:
        """The logits of the last maps."""
        return self.other_linears(scope, self.first_linear(scope, i, self.features(scope, maps)))

    def first_linear(self, scope: Scope, i: int, features: str) -> str:
        """The linear layer that reads the pooled maps."""
        read = self.config.in_channels(self.config.n_layers, i + 1) * self.config.pool_to**2
        return self._linear(scope, 0, read, features)

    def other_linears(self, scope: Scope, features: str) -> str:
        """The linear layers after the first."""
        for index in range(1, len(self.config.linears)):
            read = self.config.linears[index - 1]
            features = self._linear(scope, index, read, scope.op("Relu", features))
        return features

    def _linear(self, scope: Scope, index: int, read: int, features: str) -> str:
        weight = self._floats(f"head.{index}.weight")[:, :read]
        return _linear(scope, features, weight, self._floats(f"head.{index}.bias"))

    def _folded(self, layer: int, i: int, o: int) -> tuple[Floats, Floats]:
        """Weight and bias of a layer for its widths, the normalisation folded in."""
        read = self.config.in_channels(layer, i + 1)
        computed = self.config.out_channels(layer, o + 1)
        row = self.config.groups - 1 if self.config.whole_input(layer) else i
        weight = self._tensors[f"conv.{layer}.weight"][:computed, :read].astype(np.float32)
        scale = self._floats(f"conv.{layer}.scale")[row, :computed]
        shift = self._floats(f"conv.{layer}.shift")[row, :computed]
        return weight * scale[:, None, None, None], shift

    def _floats(self, name: str) -> Floats:
        return self._tensors[name].astype(np.float32)


class AgentWriter:
    """Writes the agent's decisions; the hidden state is carried from one to the next."""

    def __init__(self, bundle: Bundle, scope: Scope) -> None:
        self._bundle, self._scope = bundle, scope
        self._after = bundle.card.table().after()
        self._hidden = scope.constant(np.zeros((1, 1, bundle.card.agent.hidden)))
        self._decoder = scope.constant(self._floats("decoder.weight"))
        self._never = scope.constant([-np.inf])
        self.encoding = bundle.card.agent.encoding
        self._weight_ih = scope.constant(self._gates("weight_ih")[:, :, : self.encoding])
        self._weight_hh = scope.constant(self._gates("weight_hh"))
        self._cell_bias = self._write_cell_bias()
        self._biases = self._write_biases()

    def encode(self, scope: Scope, layer: int, i: int, maps: str) -> str:
        """What the agent sees before a layer: (1, encoding), of the layer's input."""
        read = self._bundle.card.backbone.in_channels(layer, i + 1)
        return self._encode(scope, layer, _pooled(scope, maps), read)

    def encode_glance(self, scope: Scope, logits: str, maps: str) -> str:
        """What the agent sees before layer 1 of a glance: its answer, and the maps at its end."""
        backbone = self._bundle.card.backbone
        shares = scope.op("Softmax", logits, axis=1)
        n_top = scope.constant([min(GLANCE_TOP, backbone.classes)], np.int64)
        top = scope.ops("TopK", [shares, n_top], 2, axis=1)[0]
        seen = scope.op("Concat", shares, top, _pooled(scope, maps), axis=1)
        return self._encode(scope, 1, seen)

    def decide(self, scope: Scope, layer: int, before: str, encoded: str, remaining: str) -> str:
        """The best width of a layer that the remaining MACs allow, (1,) int64."""
        self._hidden = self._next_hidden(scope, encoded)
        bias = scope.op("Gather", self._biases[layer - 1], before, axis=0)
        flat = scope.op("Flatten", self._hidden)
        values = scope.op("Gemm", flat, self._decoder, bias, transB=1)
        after = scope.op("Gather", scope.constant(self._after[layer], np.int64), before, axis=0)
        allowed = scope.op("LessOrEqual", after, remaining)
        return scope.op(
            "ArgMax", scope.op("Where", allowed, values, self._never), axis=1, keepdims=0
        )

    def _encode(self, scope: Scope, layer: int, seen: str, read: int | None = None) -> str:
        weight = self._floats(f"encoder.{layer}.weight")[:, :read]
        bias = self._floats(f"encoder.{layer}.bias")
        return scope.op("Relu", _linear(scope, seen, weight, bias))

    def _next_hidden(self, scope: Scope, encoded: str) -> str:
        sequence = scope.op("Unsqueeze", encoded, scope.constant([0], np.int64))
        cell = [sequence, self._weight_ih, self._weight_hh, self._cell_bias, "", self._hidden]
        # As in PyTorch, the reset gate multiplies what the hidden state gives, its bias included.
        hidden = self._bundle.card.agent.hidden
        return scope.ops("GRU", cell, 2, hidden_size=hidden, linear_before_reset=1)[1]

    def _gates(self, name: str) -> Floats:
        """A tensor of the cell with its gates in ONNX order: update, reset, new."""
        reset, update, new = np.split(self._floats(f"cell.{name}"), 3)
        return np.concatenate([update, reset, new])[None]

    def _write_cell_bias(self) -> str:
        """(1, 6 hidden); what the penalty adds to the gates is the same at every layer."""
        scope = self._scope
        biases = np.concatenate([self._gates("bias_ih"), self._gates("bias_hh")], axis=1)
        if self._bundle.card.agent.form == "paper":
            return scope.constant(biases)
        column = self._gates("weight_ih")[:, :, -1]
        weight = scope.constant(np.concatenate([column, np.zeros_like(column)], axis=1))
        told = scope.op("Relu", "penalty")
        seen = scope.op("Div", told, scope.op("Add", told, scope.constant([PENALTY_MIDPOINT])))
        return scope.op("Add", scope.constant(biases), scope.op("Mul", seen, weight))

    def _write_biases(self) -> list[str]:
        """For each layer but the first (k, k): the decoder's bias minus what a width is charged."""
        scope, card = self._scope, self._bundle.card
        prices = price(card.table(), card.agent.form)[1:]
        if not len(prices):
            return []
        charges = scope.op("Mul", "penalty", scope.constant(prices.reshape(-1, prices.shape[-1])))
        bias = scope.constant(self._floats("decoder.bias"))
        return scope.ops("Split", [scope.op("Sub", bias, charges)], len(prices), axis=0)

    def _floats(self, name: str) -> Floats:
        return self._bundle.tensors[f"agent.{name}"].astype(np.float32)


def _convolve(
    scope: Scope, maps: str, weight: Floats, bias: Floats, stride: int, padding: int
) -> str:
    return scope.op(
        "Conv",
        maps,
        scope.constant(weight),
        scope.constant(bias),
        kernel_shape=list(weight.shape[2:]),
        strides=[stride] * 2,
        pads=[padding] * 4,
    )


def _pooled(scope: Scope, maps: str) -> str:
    return scope.op("Flatten", scope.op("GlobalAveragePool", maps))


def _linear(scope: Scope, features: str, weight: Floats, bias: Floats) -> str:
    return scope.op("Gemm", features, scope.constant(weight), scope.constant(bias), transB=1)


def _pad_channels(scope: Scope, maps: str, missing: int) -> str:
    if missing == 0:
        return maps
    return scope.op("Pad", maps, scope.constant([0, 0, 0, 0, 0, missing, 0, 0], np.int64))


def _adaptive_means(size: int, pool_to: int) -> Floats:
    """(pool_to, size), the average over the windows of adaptive pooling."""
    means = np.zeros((pool_to, size), np.float32)
    for row, cells in enumerate(means):
        start, stop = row * size // pool_to, -(-(row + 1) * size // pool_to)
        cells[start:stop] = 1 / (stop - start)
    return means
