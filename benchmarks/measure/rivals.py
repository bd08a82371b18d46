"""The fastest ways that we know to run the full network on a CPU: no widths, no agent.

A rival is a function from images (N, 3, H, W) float32 to logits (N, C) float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from models.bundle import Bundle
from service.engines.base import Floats
from service.engines.onnx_builder import path_graph
from service.engines.onnx_graph import SPIN_US
from service.engines.onnx_scope import MODEL

Rival = Callable[[Floats], Floats]


def full_networks(bundle: Bundle, threads: int, scratch: Path) -> dict[str, Rival]:
    """By name: ONNX Runtime, and OpenVINO if it is installed; each also with a batch cut in parts.

    On a machine that is not quiet the first is fastest with threads that sleep as soon as ours.

    Args:
        threads: cores to use.
        scratch: where the graph is written that all of them read.
    """
    card = bundle.card.backbone
    path_graph(bundle, [card.groups] * card.n_layers).write(scratch)
    graph = scratch / MODEL
    rivals = {"ONNX Runtime": _onnx(graph, threads)}
    if threads > 1:
        rivals["ONNX Runtime, threads sleep soon"] = _onnx(graph, threads, SPIN_US)
        rivals["ONNX Runtime, batch cut"] = _cut(_onnx(graph, 1), threads)
    if importlib.util.find_spec("openvino"):
        rivals["OpenVINO"] = _openvino(graph, threads)
        if threads > 1:
            rivals["OpenVINO, batch cut"] = _openvino_cut(graph, threads)
    return rivals


def _onnx(graph: Path, threads: int, spin_us: int | None = None) -> Rival:
    """Every optimisation; and threads that spin while they wait, as they come or for so long."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def run(images: Floats) -> Floats:
        logits: Floats = session.run(["logits"], {"image": images})[0]
        return logits

    return run


def _cut(run: Rival, parts: int) -> Rival:
    """The parts of a batch beside each other, each on a core."""
    pool = ThreadPoolExecutor(parts)

    def run_parts(images: Floats) -> Floats:
        return np.concatenate(list(pool.map(run, _parts(images, parts))))

    return run_parts


def _openvino(graph: Path, threads: int) -> Rival:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    hints["INFERENCE_NUM_THREADS"] = str(threads)
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()

    def run(images: Floats) -> Floats:
        logits: Floats = request.infer({0: images}, share_inputs=True)[0]
        return logits

    return run


def _openvino_cut(graph: Path, streams: int) -> Rival:
    import openvino

    hints = {"NUM_STREAMS": str(streams), "INFERENCE_PRECISION_HINT": "f32"}
    hints["INFERENCE_NUM_THREADS"] = str(streams)
    model = openvino.Core().compile_model(graph, "CPU", hints)
    requests = [model.create_infer_request() for _ in range(streams)]

    def run(images: Floats) -> Floats:
        used = list(zip(requests, _parts(images, streams), strict=False))
        for request, part in used:
            request.start_async({0: part}, share_inputs=True)
        for request, _ in used:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request, _ in used])

    return run


def _parts(images: Floats, parts: int) -> list[Floats]:
    return [part for part in np.array_split(images, parts) if len(part)]
