from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.batcher import Answer
from service.limits import Limits
from service.protocol.infer import InferRequest, Requested
from service.protocol.outputs import write_answer
from service.protocol.specs import output_specs
from service.protocol.tensors import from_binary
from service.ranking import probabilities, rankings
from service.registry import ServedModel

LOGITS = np.array([[1, 3, 2], [4, -1, 0.5]], np.float32)
WIDTHS = np.array([[1, 2, 3], [4, 4, 4]])
MACS = [1000, 2000]
NO_CAP = Limits(0.5, 0.1, None)


def answers(*limits: Limits) -> list[Answer]:
    shares, orders = probabilities(LOGITS), rankings(LOGITS)
    rows = zip(LOGITS, shares, orders, WIDTHS, MACS, limits, strict=False)
    return [Answer(*row, queue_s=0.001, inference_s=0.002, finished=0) for row in rows]


def write(model: ServedModel, *outputs: Requested) -> tuple[Any, bytes]:
    request = InferRequest("", [b""] * 2, list(outputs), {})
    body, size = write_answer(request, model, answers(NO_CAP, NO_CAP))
    size = len(body) if size is None else size
    return json.loads(body[:size]), body[size:]


def expected(model: ServedModel) -> dict[str, list[Any]]:
    shares = probabilities(LOGITS).astype(np.float32)
    return {
        "probabilities": shares.tolist(),
        "logits": LOGITS.tolist(),
        "label": ["dog", "cat"],
        "widths": WIDTHS.tolist(),
        "macs": MACS,
        "fraction": [macs / model.table.full for macs in MACS],
    }


def test_write_answer_as_json_holds_every_value(model: ServedModel) -> None:
    head, tail = write(model, *[Requested(name, False) for name in expected(model)])
    assert tail == b""
    for output, (name, values) in zip(head["outputs"], expected(model).items(), strict=True):
        spec = output_specs(model.card)[name]
        assert (output["name"], output["datatype"]) == (name, spec.datatype)
        assert output["shape"] == [2, *spec.shape[1:]]
        assert np.reshape(output["data"], output["shape"]).tolist() == values


def test_write_answer_as_bytes_holds_every_value(model: ServedModel) -> None:
    head, tail = write(model, *[Requested(name, True) for name in expected(model)])
    for output, (name, values) in zip(head["outputs"], expected(model).items(), strict=True):
        assert output["name"] == name
        assert "data" not in output
        size = output["parameters"]["binary_data_size"]
        found = from_binary(tail[:size], output["datatype"], tuple(output["shape"]))
        found = [x.decode() for x in found] if isinstance(found, list) else found.tolist()
        assert found == values
        tail = tail[size:]
    assert tail == b""


def test_write_answer_mixes_json_and_bytes_in_the_order_asked(model: ServedModel) -> None:
    outputs = [Requested("macs", True), Requested("label", False), Requested("fraction", True)]
    head, tail = write(model, *outputs)
    assert [output["name"] for output in head["outputs"]] == ["macs", "label", "fraction"]
    assert np.frombuffer(tail[:16], "<i8").tolist() == MACS
    assert np.frombuffer(tail[16:], "<f8").tolist() == expected(model)["fraction"]


@pytest.mark.parametrize("classes", [1, 2, 3, 99])
def test_write_answer_classification_is_best_first(model: ServedModel, classes: int) -> None:
    head, _ = write(model, Requested("logits", False, classes))
    (output,) = head["outputs"]
    wanted = [
        ["3.000000:1:dog", "2.000000:2:owl", "1.000000:0:cat"],
        ["4.000000:0:cat", "0.500000:2:owl", "-1.000000:1:dog"],
    ]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, min(classes, 3)])
    assert output["data"] == [text for row in wanted for text in row[:classes]]


def test_write_answer_tells_model_id_and_what_was_in_force(model: ServedModel) -> None:
    request = InferRequest("é", [b""], [Requested("macs", False)], {})
    for limits, wanted in (
        ([NO_CAP], {"budget": 0.5, "budget_by": "request"}),
        ([Limits(0.5, 0.1, 0.9)], {"budget": 0.5, "budget_by": "request", "cap": 0.9}),
        ([NO_CAP, Limits(0.3, 0.1, None, "load")], {"budget": 0.3, "budget_by": "load"}),
    ):
        body, size = write_answer(request, model, answers(*limits))
        head = json.loads(body)
        assert size is None
        assert head["parameters"] == wanted
        assert (head["model_name"], head["model_version"], head["id"]) == ("tiny", "1", "é")


def test_write_answer_no_id_asked_none_told(model: ServedModel) -> None:
    assert "id" not in write(model, Requested("macs", False))[0]
