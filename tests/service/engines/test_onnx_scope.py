from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.engines.onnx_scope import MAX_CONSTANT_BYTES, GraphTooLarge, Scope


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3, 4), (4, 4), (2, 1)])
def test_choose_on_a_grid_runs_the_branch_at_the_position(rows: int, columns: int) -> None:
    def write(scope: Scope, row: int, column: int) -> list[str]:
        return [scope.op("Add", "x", scope.constant([10 * row + column], np.int64))]

    scope = Scope()
    axes = [("row", rows), ("column", columns)]
    (chosen,) = scope.choose(axes, write, [(TensorProto.INT64, [1])])
    scope.rename(chosen, "chosen")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [1])
        for name in ("x", "row", "column")
    ]
    output = helper.make_tensor_value_info("chosen", TensorProto.INT64, [1])
    model = helper.make_model(
        scope.graph(inputs, [output]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for row, column in np.ndindex(rows, columns):
        feeds = {"x": np.array([100]), "row": np.array([row]), "column": np.array([column])}
        assert session.run(None, feeds)[0] == 100 + 10 * row + column


def test_constant_beyond_what_a_model_holds_is_refused() -> None:
    scope = Scope()
    scope.constant(np.zeros(2**20, np.uint8), np.uint8)
    with pytest.raises(GraphTooLarge, match=str(MAX_CONSTANT_BYTES)):
        scope.constant(np.zeros(MAX_CONSTANT_BYTES, np.uint8), np.uint8)
