"""Inference requests of the Open Inference Protocol v2, read and checked; knows no HTTP.

A request's JSON may be followed by the input as bytes, and an answer's by its outputs; how long the
JSON is then stands beside the body, in a header.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.card import Card
from models.preprocess import Floats
from service.errors import BadParameter, BadRequest, BodyTooLarge, NotOffered, TooManyParts
from service.protocol.specs import input_specs, output_specs
from service.protocol.tensors import Spec, Values, from_binary, from_json, shown

_LIMITS = ("budget", "cap", "deadline_ms")
PARAMETERS = ("binary_data_output", *_LIMITS)
_OUTPUT_PARAMETERS = ("binary_data", "classification")

# A preprocessed value may be this many times as large as that of any pixel: generous to other
# ways of normalising, but not to pixels from 0 to 255, on which the network would answer nonsense.
_REACH = 10

# Python reads JSON without a pause, in which no other request is heard, and needs up to 25 times
# the memory of the text. This much is one image of 256 × 256, or 65 of 32 × 32.
_MOST_VALUES, _MOST_CONTAINERS = 200_000, 20_000

_KINDS = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


@dataclass(frozen=True)
class Requested:
    """An output that a request names.

    Attributes:
        binary: whether it is to follow the JSON as bytes.
        classes: how many of the best classes to tell in place of the values; 0 for the values.
    """

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request, checked.

    Attributes:
        id: the caller's own, "" if there is none.
        images: encoded files, or (3, H, W) float32 arrays.
        outputs: at least one.
        limits: `budget`, `cap` and `deadline_ms` as given, their ranges not yet checked.
    """

    id: str
    images: Sequence[bytes | Floats]
    outputs: list[Requested]
    limits: dict[str, Any]


def read_request(body: bytes, json_bytes: int | None, card: Card, max_images: int) -> InferRequest:
    """Read an inference request.

    Args:
        json_bytes: length of the JSON at the body's start; None: all of it; 0: none, the body is
            one encoded image, and all outputs are to be binary.

    Raises:
        BadRequest: it does not follow the protocol, or not the model's inputs and outputs.
        BadParameter: a parameter that is not known.
        BodyTooLarge: JSON of too many values.
        NotOffered: it wants shared memory.
        TooManyParts: more than `max_images` images.
    """
    if json_bytes == 0:
        return InferRequest("", [body], _outputs([], card, binary=True), {})
    if json_bytes is not None and json_bytes > len(body):
        raise BadRequest(f"the JSON is said to have {json_bytes} bytes, the body has {len(body)}")
    request = read_object(body if json_bytes is None else body[:json_bytes])
    data = b"" if json_bytes is None else body[json_bytes:]
    parameters = _get(request, "parameters", dict, {})
    _check_parameters(parameters)
    return InferRequest(
        id=_get(request, "id", str, ""),
        images=_images(_get(request, "inputs", list, []), data, card, max_images),
        outputs=_outputs(
            _get(request, "outputs", list, []),
            card,
            binary=_get(parameters, "binary_data_output", bool, False),
        ),
        limits={key: parameters[key] for key in _LIMITS if key in parameters},
    )


def read_object(text: bytes) -> dict[str, Any]:
    """A JSON object, in UTF-8.

    Raises:
        BadRequest: anything else, or nested too deeply to be read.
        BodyTooLarge: it holds more values, arrays or objects than a request needs.
    """
    _check_amount(text)
    try:
        found = json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRequest("the JSON is not UTF-8") from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if type(found) is not dict:
        raise BadRequest(f"the body is {shown(found)}: it must be a JSON object")
    return found


def _check_amount(text: bytes) -> None:
    """Refuse JSON that would take long to read, by the signs in it, wherever they stand."""
    containers = text.count(b"[") + text.count(b"{")
    if text.count(b",") >= _MOST_VALUES or containers > _MOST_CONTAINERS:
        raise BodyTooLarge(
            f"the JSON holds more than {_MOST_VALUES} values, or {_MOST_CONTAINERS} arrays and "
            "objects, which are the limits: send fewer images, or the values as binary data"
        )


def _images(
    inputs: list[Any], data: bytes, card: Card, max_images: int
) -> Sequence[bytes | Floats]:
    specs = input_specs(card)
    if len(inputs) != 1:
        raise BadRequest(f"{len(inputs)} inputs: send exactly one, {' or '.join(specs)}")
    entry = _object(inputs[0], "inputs[0]")
    spec = _named(entry, specs, "input")
    datatype = _get(entry, "datatype", str, "")
    if datatype != spec.datatype:
        raise BadRequest(f"the datatype of {spec.name} is {shown(datatype)}, not {spec.datatype}")
    shape = _shape(entry, spec, max_images)
    parameters = _get(entry, "parameters", dict, {})
    _check_no_shared_memory(parameters)
    size = _get(parameters, "binary_data_size", int, None)
    values = _values(entry, size, data, spec, shape)
    if isinstance(values, list):
        return [_file(text) for text in values] if size is None else values
    _check_reach(values, card)
    return list(values.astype(np.float32, copy=False))


def _named(entry: dict[str, Any], specs: dict[str, Spec], what: str) -> Spec:
    name = _get(entry, "name", str, "")
    if name not in specs:
        raise BadRequest(f"{shown(name)} is no {what}: choose from {', '.join(specs)}")
    return specs[name]


def _shape(entry: dict[str, Any], spec: Spec, max_images: int) -> tuple[int, ...]:
    shape = _get(entry, "shape", list, [])
    fits = len(shape) == len(spec.shape) and all(
        type(size) is int and (wanted in (-1, size)) and size > 0
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise BadRequest(
            f"the shape of {spec.name} is {shown(shape)}: it must be {list(spec.shape)}, "
            "with the number of images for -1"
        )
    if shape[0] > max_images:
        raise TooManyParts(
            f"the request has {shape[0]} images, the limit is {max_images}: send several requests"
        )
    return tuple(shape)


def _values(
    entry: dict[str, Any], size: int | None, data: bytes, spec: Spec, shape: tuple[int, ...]
) -> Values:
    given = entry.get("data")
    if size is None:
        if data:
            raise BadRequest(f"{len(data)} bytes follow the JSON, but no binary_data_size says so")
        if given is None:
            raise BadRequest(f"{spec.name} has neither data nor a binary_data_size")
        return from_json(given, spec.datatype, shape)
    if given is not None:
        raise BadRequest(f"{spec.name} has both data and a binary_data_size: send one of them")
    if size != len(data):
        raise BadRequest(f"binary_data_size is {size}, but {len(data)} bytes follow the JSON")
    return from_binary(data, spec.datatype, shape)


def _file(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRequest(
            f"an element of image is not base64 ({error}): JSON holds no bytes, so encode the "
            "file, or send it as binary data"
        ) from error


def _check_reach(values: Any, card: Card) -> None:
    preprocessing = card.preprocessing
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    limit = _REACH * float((np.maximum(mean, 1 - mean) / std).max())
    largest = float(np.abs(values).max())
    # Asked so that NaN is refused too.
    if not largest <= limit:
        raise BadRequest(
            f"input holds a value of size {largest:g}, the limit is {limit:g}: scale pixels to "
            f"[0, 1], subtract the mean {list(preprocessing.mean)} and divide by the deviation "
            f"{list(preprocessing.std)}"
        )


def _outputs(entries: list[Any], card: Card, *, binary: bool) -> list[Requested]:
    specs = output_specs(card)
    if not entries:
        return [Requested(name, binary) for name in specs]
    if len(entries) > len(specs):
        raise BadRequest(f"{len(entries)} outputs: there are {len(specs)}, {', '.join(specs)}")
    outputs = [
        _output(_object(entry, f"outputs[{number}]"), specs, binary)
        for number, entry in enumerate(entries)
    ]
    if len({output.name for output in outputs}) < len(outputs):
        raise BadRequest("an output is named twice: name each once")
    return outputs


def _output(entry: dict[str, Any], specs: dict[str, Spec], binary: bool) -> Requested:
    spec = _named(entry, specs, "output")
    parameters = _get(entry, "parameters", dict, {})
    _check_no_shared_memory(parameters)
    if unknown := parameters.keys() - set(_OUTPUT_PARAMETERS):
        raise BadParameter(
            f"{shown(min(unknown))} is no parameter of an output: the known ones are "
            f"{', '.join(_OUTPUT_PARAMETERS)}"
        )
    classes = _get(parameters, "classification", int, None)
    if classes is not None and (spec.name not in ("probabilities", "logits") or classes < 1):
        raise BadRequest(
            f"classification of {spec.name} is {classes}: ask for 1 or more classes, of "
            "probabilities or logits"
        )
    return Requested(spec.name, _get(parameters, "binary_data", bool, binary), classes or 0)


def _check_parameters(parameters: dict[str, Any]) -> None:
    for name in parameters:
        if name not in PARAMETERS:
            raise BadParameter(
                f"{shown(name)} is no parameter: the known ones are {', '.join(PARAMETERS)}"
            )
    for name in _LIMITS:
        value = parameters.get(name)
        if value is not None and type(value) not in (int, float):
            raise BadParameter(f"{name} is {shown(value)}: it must be a number")


def _check_no_shared_memory(parameters: dict[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise NotOffered("shared memory is not offered: send the values in the body")


def _get(entry: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A field of exactly this type (to Python, true is an integer too), null like none."""
    value = entry.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise BadRequest(f"{key} is {shown(value)}: it must be {_KINDS[kind]}")
    return value


def _object(entry: Any, where: str) -> dict[str, Any]:
    if type(entry) is not dict:
        raise BadRequest(f"{where} is {shown(entry)}: it must be an object")
    return entry


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a value of JSON")
