"""Answers of the Open Inference Protocol v2: the outputs asked for, as JSON and bytes; no HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.batcher import Answer
from service.protocol.infer import InferRequest, Requested
from service.protocol.specs import VERSION, output_specs
from service.protocol.tensors import Tensor, Values, classification, to_binary, to_json
from service.registry import ServedModel


def write_answer(
    request: InferRequest, model: ServedModel, answers: Sequence[Answer]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes follow that.

    Its parameters tell what the images were allowed; where that differs, what the least one was.

    Args:
        answers: one for each image, in order.
    """
    limits = min((answer.limits for answer in answers), key=lambda one: one.budget)
    head: dict[str, Any] = {"model_name": model.card.name, "model_version": VERSION}
    if request.id:
        head["id"] = request.id
    head["parameters"] = {"budget": limits.budget, "budget_by": limits.by}
    if limits.cap is not None:
        head["parameters"]["cap"] = limits.cap
    head["outputs"], tail = [], []
    for requested in request.outputs:
        entry, data = _written(requested, _tensor(requested, model, answers))
        head["outputs"].append(entry)
        tail.append(data)
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    binary = any(requested.binary for requested in request.outputs)
    return b"".join([text, *tail]), len(text) if binary else None


def _written(requested: Requested, tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """An output's part of the JSON, and its bytes after that."""
    entry: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if requested.binary:
        data = to_binary(tensor)
        return entry | {"parameters": {"binary_data_size": len(data)}}, data
    return entry | {"data": to_json(tensor)}, b""


def _tensor(requested: Requested, model: ServedModel, answers: Sequence[Answer]) -> Tensor:
    spec = output_specs(model.card)[requested.name]
    values = _values(requested.name, model, answers)
    if requested.classes and not isinstance(values, list):
        orders = [answer.ranking[: requested.classes].tolist() for answer in answers]
        return classification(spec.name, values, orders, model.card.labels)
    return Tensor(spec.name, spec.datatype, (len(answers), *spec.shape[1:]), values)


def _values(name: str, model: ServedModel, answers: Sequence[Answer]) -> Values:
    match name:
        case "probabilities":
            return np.array([answer.probabilities for answer in answers], np.float32)
        case "logits":
            return np.array([answer.logits for answer in answers], np.float32)
        case "label":
            return [model.card.labels[answer.ranking[0]].encode() for answer in answers]
        case "widths":
            return np.array([answer.widths for answer in answers], np.int64)
        case "macs":
            return np.array([answer.macs for answer in answers], np.int64)
    assert name == "fraction", name
    return np.array([answer.macs / model.table.full for answer in answers])
