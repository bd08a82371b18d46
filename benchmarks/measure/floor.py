"""A machine's best: multiply–accumulates and bytes a second, in this minute."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from service.engines.onnx_scope import IR_VERSION, OPSET

SIDE = 1536
# Far more than the caches hold.
BYTES = 1 << 28
REPEATS = 5


def peak_macs(threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """MACs a second of a large float32 matrix product in ONNX Runtime."""
    shape = [SIDE, SIDE]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    model = helper.make_model(
        helper.make_graph([node], "product", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    factor = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return SIDE**3 / _least(lambda: session.run(None, {"a": factor, "b": factor}), clock)


def read_bytes(clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that one core reads from memory, in a matrix–vector product."""
    matrix = np.ones((BYTES // 4 // 4096, 4096), np.float32)
    vector = np.ones(4096, np.float32)
    return BYTES / _least(lambda: matrix @ vector, clock)


def _least(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds[1:])
