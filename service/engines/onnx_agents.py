"""What the ONNX graphs of the agents consist of: choices after a path, or layer by layer.

Widths count from 0 here, so that they index tables.
"""

from __future__ import annotations

import numpy as np

from models.bundle import Bundle
from models.compute import look_price, price
from models.config import LOOK_LEAST_LOG, LOOK_TOP, PENALTY_MIDPOINT
from service.engines.base import Floats
from service.engines.onnx_scope import Scope, Width


def write_choice(scope: Scope, bundle: Bundle, look: int, logits: str, maps: str) -> str:
    """The path to run after `look`, or `look` itself to stop there: (N,) int64.

    Args:
        logits: (N, classes) of that path. maps: its last.
    """
    table = bundle.card.table()
    # Stopping, the first choice, gains nothing and costs nothing.
    prices = np.pad(look_price(table)[look + 1 :], (1, 0))
    macs = np.pad(table.looks[look + 1 :], (1, 0))
    gain = _write_gain(scope, bundle, look, logits, maps)
    values = scope.op("Sub", gain, scope.op("Mul", "penalty", scope.constant(prices)))
    allowed = scope.op("LessOrEqual", scope.constant(macs, np.int64), "left")
    best = scope.op("Where", allowed, values, scope.constant([-np.inf]))
    steps = scope.op("ArgMax", best, axis=1, keepdims=0)
    return scope.op("Add", steps, scope.index(look)) if look else steps


def _write_gain(scope: Scope, bundle: Bundle, look: int, logits: str, maps: str) -> str:
    """What stopping after `look` and each later path are expected to gain: (N, M - look)."""
    logs = scope.op("LogSoftmax", logits, axis=1)
    logs = scope.op("Max", logs, scope.constant([LOOK_LEAST_LOG]))
    n_top = min(LOOK_TOP[bundle.card.agent.sees], bundle.card.backbone.classes)
    top, _ = scope.ops("TopK", [logs, scope.constant([n_top], np.int64)], 2, axis=1)
    if bundle.card.agent.sees == "answer":
        seen = [scope.op("Exp", top), top]
    else:
        logs = scope.op("Concat", logs, top, axis=1)
        seen = [scope.op("Exp", logs), logs, _pooled(scope, maps)]
    hidden = scope.op("Concat", *seen, _squashed(scope), axis=1)
    for layer in range(2):
        hidden = scope.op("Relu", _linear(scope, bundle, f"looks.{look}.{layer}", hidden))
    weight, bias = (_floats(bundle, f"looks.{look}.2.{part}") for part in ("weight", "bias"))
    return scope.linear(hidden, np.pad(weight, ((1, 0), (0, 0))), np.pad(bias, (1, 0)))


def _squashed(scope: Scope) -> str:
    """The penalty as the agent is told it, in [0, 1); below 0 it is told 0."""
    told = scope.op("Relu", "penalty")
    return scope.op("Div", told, scope.op("Add", told, scope.constant([PENALTY_MIDPOINT])))


class LayerAgentWriter:
    """Writes an agent's decisions; hidden state and MACs are carried from one to the next."""

    def __init__(self, bundle: Bundle, scope: Scope) -> None:
        table, config = bundle.card.table(), bundle.card.agent
        self.decisions, self.encoding = table.decisions, config.encoding
        self._bundle, self._scope, self._k = bundle, scope, table.groups
        rows = (-1, table.groups)
        self._after = scope.constant(table.after().reshape(rows), np.int64)
        self._steps = scope.constant(table.steps().ravel(), np.int64)
        self._left = scope.op("Sub", "cap_macs", scope.constant([table.start], np.int64))
        charges = scope.op(
            "Mul", "penalty", scope.constant(price(table, config.form).reshape(rows))
        )
        self._biases = scope.op("Sub", scope.constant(self._floats("decoder.bias")), charges)
        self._decoder = scope.constant(self._floats("decoder.weight"))
        self._never = scope.constant([-np.inf])
        self._hidden = scope.constant(np.zeros((1, 1, config.hidden)))
        self._weight_ih = scope.constant(self._gates("weight_ih")[:, :, : self.encoding])
        self._weight_hh = scope.constant(self._gates("weight_hh"))
        self._cell_bias = self._write_cell_bias()

    def encode(self, scope: Scope, layer: int, i: int, maps: str) -> str:
        """What the agent sees before a layer: (1, encoding), of the layer's input."""
        read = self._bundle.card.backbone.in_channels(layer, i + 1)
        encoded = _linear(scope, self._bundle, f"encoder.{layer}", _pooled(scope, maps), read)
        return scope.op("Relu", encoded)

    def decide(self, layer: int, earlier: Width, before: Width, encoded: str) -> str:
        """The best width of a layer that the MACs left allow, (1,) int64.

        Args:
            earlier, before: widths of the layers two and one before.
        """
        scope = self._scope
        self._hidden = self._next_hidden(encoded)
        row = self._place(self._place(scope.index(layer), earlier), before)
        bias = scope.op("Gather", self._biases, row, axis=0)
        flat = scope.op("Flatten", self._hidden)
        values = scope.op("Gemm", flat, self._decoder, bias, transB=1)
        after = scope.op("Gather", self._after, row, axis=0)
        allowed = scope.op("LessOrEqual", after, self._left)
        best = scope.op("Where", allowed, values, self._never)
        width = scope.op("ArgMax", best, axis=1, keepdims=0)
        cost = scope.op("Gather", self._steps, self._place(row, width), axis=0)
        self._left = scope.op("Sub", self._left, cost)
        return width

    def _place(self, row: str, width: Width) -> str:
        """Where a width's entry is among those of a table's row, if all rows are one."""
        scope = self._scope
        return scope.op("Add", scope.op("Mul", row, scope.index(self._k)), scope.index(width))

    def _next_hidden(self, encoded: str) -> str:
        scope = self._scope
        sequence = scope.op("Unsqueeze", encoded, scope.index(0))
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
        return scope.op("Add", scope.constant(biases), scope.op("Mul", _squashed(scope), weight))

    def _floats(self, name: str) -> Floats:
        return _floats(self._bundle, name)


def _pooled(scope: Scope, maps: str) -> str:
    return scope.op("Flatten", scope.op("GlobalAveragePool", maps))


def _linear(scope: Scope, bundle: Bundle, name: str, features: str, read: int | None = None) -> str:
    weight, bias = _floats(bundle, f"{name}.weight"), _floats(bundle, f"{name}.bias")
    return scope.linear(features, weight[:, :read], bias)


def _floats(bundle: Bundle, name: str) -> Floats:
    return bundle.tensors[f"agent.{name}"].astype(np.float32)
