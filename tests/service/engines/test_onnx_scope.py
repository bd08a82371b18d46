from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from service.engines.onnx_scope import EXTERNAL_BYTES, MODEL, WEIGHTS, OnnxGraph, Scope


def integers(name: str, size: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [size])


def session(graph: OnnxGraph, directory: Path) -> ort.InferenceSession:
    graph.write(directory)
    return ort.InferenceSession(directory / MODEL, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_choose_on_a_grid_runs_the_branch_at_the_position(tmp_path: Path, groups: int) -> None:
    def write(scope: Scope, row: int, known: int, column: int) -> list[str]:
        return [scope.op("Add", "x", scope.constant([100 * row + 10 * known + column], np.int64))]

    scope = Scope()
    (chosen,) = scope.choose(["row", 7, "column"], groups, write, [(TensorProto.INT64, [1])])
    scope.rename(chosen, "chosen")
    inputs = [integers(name, 1) for name in ("x", "row", "column")]
    runner = session(scope.finish(inputs, [integers("chosen", 1)]), tmp_path)
    for row, column in np.ndindex(groups, groups):
        feeds = {"x": np.array([1000]), "row": np.array([row]), "column": np.array([column])}
        assert runner.run(None, feeds)[0] == 1070 + 100 * row + column


def test_choose_by_what_is_known_writes_no_branches() -> None:
    scope, scopes = Scope(), []
    names = scope.choose([2, 3], 4, lambda *args: scopes.append(args) or ["y"], [])
    assert names == ["y"]
    assert scopes == [(scope, 2, 3)]


@pytest.mark.parametrize("cases", [2, 3, 5])
def test_choose_early_runs_the_branch_of_the_number_the_first_soonest(
    tmp_path: Path, cases: int
) -> None:
    def write(scope: Scope, number: int) -> list[str]:
        # As many of them as its number.
        value = scope.op("Add", "x", scope.constant([100 * number], np.int64))
        return [value, scope.constant(np.full((number, 1), number), np.int64)]

    scope, outputs = Scope(), [(TensorProto.INT64, [1]), (TensorProto.INT64, [None, 1])]
    scope.choose_early("number", cases, write, outputs, ["y", "z"])
    several = helper.make_tensor_value_info("z", TensorProto.INT64, [None, 1])
    graph = scope.finish([integers("x", 1), integers("number", 1)], [integers("y", 1), several])
    runner = session(graph, tmp_path)
    for number in range(cases):
        y, z = runner.run(["y", "z"], {"x": np.array([7]), "number": np.array([number])})
        assert y == 7 + 100 * number
        np.testing.assert_array_equal(z, np.full((number, 1), number))
    first, others = branches(graph.model.graph)
    assert {node.op_type for node in first.node} == {"Add"}
    assert depth(others) == math.ceil(math.log2(cases - 1))


def branches(graph: GraphProto) -> list[GraphProto]:
    """What is run below a number and from it on; none where nothing is left to choose."""
    attributes = [a for node in graph.node for a in node.attribute if node.op_type == "If"]
    return [a.g for a in sorted(attributes, key=lambda a: a.name)]


def depth(graph: GraphProto) -> int:
    """How many choices lie on the longest way through a graph."""
    return max((1 + depth(branch) for branch in branches(graph)), default=0)


def test_constants_large_ones_are_read_from_the_file_beside_the_model(tmp_path: Path) -> None:
    size = EXTERNAL_BYTES // 8
    values = [np.arange(size) * 7, np.arange(size) ** 2]

    def write(scope: Scope, case: int) -> list[str]:
        return [scope.op("Add", "x", scope.constant(values[case], np.int64))]

    scope = Scope()
    (chosen,) = scope.choose(["case"], 2, write, [(TensorProto.INT64, [size])])
    scope.rename(scope.op("Add", chosen, scope.constant([5], np.int64)), "y")
    graph = scope.finish([integers("x", size), integers("case", 1)], [integers("y", size)])
    runner = session(graph, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size == 2 * EXTERNAL_BYTES
    for case in range(2):
        feeds = {"x": np.ones(size, np.int64), "case": np.array([case])}
        np.testing.assert_array_equal(runner.run(None, feeds)[0], values[case] + 6)


def test_constants_equal_ones_are_stored_once(tmp_path: Path) -> None:
    size = EXTERNAL_BYTES // 8
    scope, total = Scope(), "x"
    for values in (np.arange(size), np.ones(size), np.arange(size), np.ones(size)):
        total = scope.op("Add", total, scope.constant(values, np.int64))
    scope.rename(total, "y")
    runner = session(scope.finish([integers("x", size)], [integers("y", size)]), tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size == 2 * EXTERNAL_BYTES
    (y,) = runner.run(None, {"x": np.zeros(size, np.int64)})
    np.testing.assert_array_equal(y, 2 * np.arange(size) + 2)
