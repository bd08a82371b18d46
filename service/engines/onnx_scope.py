"""A small writer of ONNX graphs: nodes, constants and trees of branches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

OPSET, IR_VERSION = 17, 8
MODEL, WEIGHTS = "graph.onnx", "weights.bin"

# Constants from this size on go to a file of their own. The runtime copies a model once for every
# level of branches, which held weights five times over; and one model message ends at 2 GiB.
EXTERNAL_BYTES = 1024
ALIGNMENT_BYTES = 64

# Element type and shape of a branch's output, None for an extent that differs between branches.
Output = tuple[int, Sequence[int | None]]
# A width that counts from 0: known, or the name of the int64 that it will be.
Width = int | str
Branch = Callable[["Scope", int], list[str]]


@dataclass(frozen=True)
class OnnxGraph:
    """A model, and the weights that it expects in a file beside it, by their offsets there."""

    model: onnx.ModelProto
    weights: dict[int, npt.NDArray[Any]]

    def write(self, directory: Path) -> None:
        """Write both files into a directory."""
        (directory / MODEL).write_bytes(self.model.SerializeToString())
        with (directory / WEIGHTS).open("wb") as file:
            for offset, array in self.weights.items():
                file.seek(offset)
                file.write(array.data)


class _Model:
    """What the scopes of one model share: the names given, and the large constants."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._end = 0
        self._offsets: dict[bytes, int] = {}
        self.weights: dict[int, npt.NDArray[Any]] = {}

    def name(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"

    def externalise(self, array: npt.NDArray[Any], tensor: onnx.TensorProto) -> None:
        """Move a constant's values out of the model; equal values are stored once."""
        offset = self._offsets.setdefault(
            hashlib.sha256(array.data).digest(), -(-self._end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        )
        set_external_data(tensor, WEIGHTS, offset, array.nbytes)
        tensor.ClearField("raw_data")
        self.weights[offset] = array
        self._end = max(self._end, offset + array.nbytes)


class Scope:
    """The main graph of a model, or one branch in it, which also sees the values around it."""

    def __init__(self, model: _Model | None = None) -> None:
        self._model = model or _Model()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add a constant and return its name."""
        array = np.ascontiguousarray(values, dtype)
        tensor = numpy_helper.from_array(array, self._model.name("constant"))
        if array.nbytes >= EXTERNAL_BYTES:
            self._model.externalise(array, tensor)
        self._constants.append(tensor)
        return tensor.name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and return its name."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return its outputs' names."""
        names = [self._model.name(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, names[0], **attributes))
        return names

    def linear(
        self, features: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
    ) -> str:
        """Add a linear layer and return its name."""
        return self.op("Gemm", features, self.constant(weight), self.constant(bias), transB=1)

    def rename(self, value: str, name: str) -> None:
        """Give a value the name by which it is known outside the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name))

    def index(self, width: Width) -> str:
        """The name of a width, one int64."""
        return width if isinstance(width, str) else self.constant([width], np.int64)

    def choose(
        self,
        widths: Sequence[Width],
        groups: int,
        write: Callable[..., Sequence[str]],
        outputs: Sequence[Output],
    ) -> list[str]:
        """Run one of a grid of branches, and return its outputs' names.

        Args:
            widths: for each axis of the grid, what chooses on it. There are no branches over one
                that is known: ONNX Runtime crashes when it folds an `If` that holds another.
            groups: how many branches an axis has.
            write: called as write(scope, *widths) for every branch; returns its outputs.
            outputs: what these are.
        """
        if not widths:
            return list(write(self))
        width, *rest = widths

        def branch(scope: Scope, chosen: int) -> list[str]:
            return scope.choose(rest, groups, lambda s, *others: write(s, chosen, *others), outputs)

        if isinstance(width, int):
            return branch(self, width)
        return self._branch(width, range(groups), branch, outputs, lambda part: len(part) // 2)

    def choose_early(
        self,
        index: str,
        cases: int,
        branch: Branch,
        outputs: Sequence[Output],
        names: Sequence[str],
    ) -> None:
        """Run one of two or more branches: the first behind one choice, the others behind few.

        Args:
            index: the name of the number, one int64.
            branch: called as branch(scope, number) for every number; returns its outputs.
            outputs: what these are. names: by which they are known outside the graph.
        """
        self._branch(
            index, range(cases), branch, outputs, lambda part: 1 if 0 in part else len(part) // 2
        )
        # Nodes that rename would take as long as the choice.
        self._nodes[-1].output[:] = names

    def _branch(
        self,
        index: str,
        cases: range,
        branch: Branch,
        outputs: Sequence[Output],
        low: Callable[[range], int],
    ) -> list[str]:
        """A tree of branches; `low` tells how many of some cases are on the lower side."""
        if len(cases) == 1:
            return branch(self, cases[0])
        n_low = low(cases)
        is_high = self.op("GreaterOrEqual", index, self.constant([cases[n_low]], np.int64))
        branches = {}
        for key, part in (("else_branch", cases[:n_low]), ("then_branch", cases[n_low:])):
            scope = Scope(self._model)
            names = scope._branch(index, part, branch, outputs, low)
            values = [
                helper.make_tensor_value_info(name, *output)
                for name, output in zip(names, outputs, strict=True)
            ]
            branches[key] = scope._graph([], values)
        return self.ops("If", [is_high], len(outputs), **branches)

    def finish(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> OnnxGraph:
        """All that was written, as a model."""
        model = helper.make_model(
            self._graph(inputs, outputs),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="runtime-neural-pruning",
        )
        return OnnxGraph(model, self._model.weights)

    def _graph(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        return helper.make_graph(
            self._nodes, self._model.name("graph"), inputs, outputs, self._constants
        )
