"""The Open Inference Protocol's requests and answers, as the documentation at /docs shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.limits import BudgetBy
from service.schemas import MAX_DEADLINE_MS, Share


class Live(BaseModel):
    """Whether the process lives."""

    live: bool


class Ready(BaseModel):
    """Whether images can be classified."""

    ready: bool


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or an output; -1 stands for the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Whether a model can be asked."""

    name: str
    ready: bool


class TensorConfig(BaseModel):
    """An input or an output, in Triton's words."""

    name: str
    data_type: str
    dims: list[int]


class InputConfig(TensorConfig):
    """An input, of which a request sends one."""

    optional: bool


class ModelConfig(BaseModel):
    """A model as Triton's `ModelConfig`; the parameters say how to preprocess."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[InputConfig]
    output: list[TensorConfig]
    parameters: dict[str, dict[str, str]]


class Duration(BaseModel):
    """How often, and how long in all, in nanoseconds."""

    count: int
    ns: int


class ModelStatistics(BaseModel):
    """What a model did since it was loaded; every image counts as a request."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: list[Any]


class Statistics(BaseModel):
    """What models did since they were loaded."""

    model_stats: list[ModelStatistics]


class LimitsInForce(BaseModel):
    """What a request was answered within."""

    budget: Share
    budget_by: BudgetBy
    cap: Share | None = None


class OutputTensor(BaseModel):
    """An output; `data` is missing if the values follow as bytes, whose number is a parameter."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(BaseModel):
    """The outputs for all images."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: LimitsInForce
    outputs: list[OutputTensor]


_SHARE = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1}
_FLAG = {"type": ["boolean", "null"]}


def _object(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _tensor(name: str, datatype: str, dimensions: int, element: str) -> dict[str, Any]:
    size = {"type": "integer", "minimum": 1}
    return _object(
        "name",
        "shape",
        "datatype",
        "data",
        name={"const": name},
        datatype={"const": datatype},
        shape={
            "type": "array",
            "items": size,
            "minItems": dimensions,
            "maxItems": dimensions,
        },
        data={"type": "array", "items": {"type": element}, "minItems": 1},
    )


_LIMITS = _object(
    budget=_SHARE,
    cap=_SHARE,
    deadline_ms={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_MS},
    binary_data_output=_FLAG,
)

# JSON alone; a tensor may also follow it as bytes, which no schema of JSON can tell.
INFER_BODY = _object(
    "inputs",
    id={"type": ["string", "null"]},
    inputs={
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {
            "oneOf": [_tensor("image", "BYTES", 1, "string"), _tensor("input", "FP32", 4, "number")]
        },
    },
    outputs={
        "type": ["array", "null"],
        "items": _object(
            "name",
            name={"enum": ["probabilities", "logits", "label", "widths", "macs", "fraction"]},
            parameters=_object(
                binary_data=_FLAG, classification={"type": ["integer", "null"], "minimum": 1}
            )
            | {"type": ["object", "null"], "not": {"required": ["shared_memory_region"]}},
        ),
        "maxItems": 6,
    },
    parameters=_LIMITS | {"type": ["object", "null"], "additionalProperties": False},
)
