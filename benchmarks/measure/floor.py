"""A machine's best: multiply–accumulates and bytes a second, in this minute."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from service.engines.base import Floats
from service.engines.onnx_scope import IR_VERSION, OPSET

SIDE = 1536
# Far more than the caches hold.
BYTES = 1 << 28
REPEATS = 5


def peak_macs(threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """MACs a second of a large float32 matrix product in ONNX Runtime."""
    factor = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    return SIDE**3 / _least(_product(factor, factor, threads), clock)


def read_bytes(clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that one core reads from memory, in a vector–matrix product."""
    matrix = np.ones((BYTES // 4 // 4096, 4096), np.float32)
    vector = np.ones((1, len(matrix)), np.float32)
    return BYTES / _least(_product(vector, matrix, threads=1), clock)


def _product(a: Floats, b: Floats, threads: int) -> Callable[[], object]:
    """Of two matrices in ONNX Runtime, which does as it is told; NumPy's takes all cores."""
    shapes = {"a": a.shape, "b": b.shape, "c": (len(a), b.shape[1])}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    model = helper.make_model(
        helper.make_graph([node], "product", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a, "b": b})


def _least(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds[1:])
