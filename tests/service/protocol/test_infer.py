from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from models.card import Card
from service.errors import (
    BadParameter,
    BadRequest,
    BodyTooLarge,
    NotOffered,
    ServiceError,
    TooManyParts,
)
from service.protocol.infer import InferRequest, Requested, read_object, read_request
from service.protocol.specs import output_specs
from tests.service.support import SIZE

ALL = ["probabilities", "logits", "label", "widths", "macs", "fraction"]
SHAPE = [1, 3, SIZE, SIZE]
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
FILE = b"\x89PNG and so on"


def read(card: Card, head: Any, tail: bytes | None = None) -> InferRequest:
    text = json.dumps(head).encode()
    if tail is None:
        return read_request(text, None, card, 4)
    return read_request(text + tail, len(text), card, 4)


def image(**changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(FILE).decode()]
    return {"name": "image", "shape": [1], "datatype": "BYTES", "data": data, **changes}


def tensor(**changes: Any) -> dict[str, Any]:
    data = VALUES.ravel().tolist()
    return {"name": "input", "shape": SHAPE, "datatype": "FP32", "data": data, **changes}


def test_read_request_files_as_base64(card: Card) -> None:
    request = read(card, {"id": "7", "inputs": [image()]})
    assert request == InferRequest("7", [FILE], [Requested(name, False) for name in ALL], {})


def test_read_request_files_as_bytes(card: Card) -> None:
    tail = b"".join(struct.pack("<I", len(FILE)) + FILE for _ in range(2))
    entry = image(shape=[2], data=None, parameters={"binary_data_size": len(tail)})
    assert read(card, {"inputs": [entry]}, tail).images == [FILE, FILE]


@pytest.mark.parametrize("nested", [False, True])
def test_read_request_values_as_json(card: Card, nested: bool) -> None:
    data = VALUES.tolist() if nested else VALUES.ravel().tolist()
    (row,) = read(card, {"inputs": [tensor(data=data)]}).images
    np.testing.assert_array_equal(row, VALUES[0])
    assert row.dtype == np.float32


def test_read_request_values_as_bytes(card: Card) -> None:
    tail = np.concatenate([VALUES, -VALUES]).tobytes()
    entry = tensor(shape=[2, *SHAPE[1:]], parameters={"binary_data_size": len(tail)})
    del entry["data"]
    first, second = read(card, {"inputs": [entry]}, tail).images
    np.testing.assert_array_equal(first, VALUES[0])
    np.testing.assert_array_equal(second, -VALUES[0])


def test_read_request_raw_body_is_one_file_and_all_outputs_are_binary(card: Card) -> None:
    request = read_request(FILE, 0, card, 4)
    assert request == InferRequest("", [FILE], [Requested(name, True) for name in ALL], {})


def test_read_request_own_choice_of_binary_goes_before_the_general_one(card: Card) -> None:
    outputs = [
        {"name": "macs", "parameters": {"binary_data": False}},
        {"name": "logits", "parameters": {"classification": 2}},
    ]
    head = {"inputs": [image()], "outputs": outputs, "parameters": {"binary_data_output": True}}
    assert read(card, head).outputs == [Requested("macs", False), Requested("logits", True, 2)]


def test_read_request_budget_and_cap_are_kept(card: Card) -> None:
    head = {"inputs": [image()], "parameters": {"budget": 0.4, "cap": None}}
    assert read(card, head).limits == {"budget": 0.4, "cap": None}


def test_read_request_null_is_like_absent(card: Card) -> None:
    head = {"id": None, "inputs": [image(parameters=None)], "outputs": None, "parameters": None}
    assert read(card, head).images == [FILE]


def test_read_request_other_fields_are_passed_over(card: Card) -> None:
    head = {"model_name": "x", "inputs": [image(parameters={"content_type": "base64"})]}
    assert read(card, head).images == [FILE]


def test_outputs_are_those_that_the_model_has(card: Card) -> None:
    assert list(output_specs(card)) == ALL


def with_output(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [image()], "outputs": [{"name": "macs", "parameters": parameters}]}


BAD: dict[str, tuple[Any, type[ServiceError], str]] = {
    "misspelt parameter of an output": (
        with_output(clasification=1),
        BadParameter,
        "'clasification' is no parameter of an output: the known ones are binary_data, classif",
    ),
    "no inputs": ({}, BadRequest, "0 inputs: send exactly one, image or input"),
    "both inputs": ({"inputs": [image(), tensor()]}, BadRequest, "2 inputs"),
    "inputs no array": ({"inputs": {}}, BadRequest, "inputs is {}: it must be an array"),
    "input no object": ({"inputs": ["image"]}, BadRequest, "inputs.0. is 'image'"),
    "no name": ({"inputs": [{}]}, BadRequest, "'' is no input: choose from image, input"),
    "other name": ({"inputs": [image(name="img\ud800")]}, BadRequest, "is no input"),
    "name a number": ({"inputs": [image(name=1)]}, BadRequest, "name is 1: it must be a string"),
    "FP64": ({"inputs": [tensor(datatype="FP64")]}, BadRequest, "'FP64', not FP32"),
    "no datatype": ({"inputs": [image(datatype=None)]}, BadRequest, "'', not BYTES"),
    "no shape": ({"inputs": [image(shape=None)]}, BadRequest, r"shape of image is \[\]"),
    "shape of another rank": ({"inputs": [image(shape=[1, 1])]}, BadRequest, r"must be \[-1\]"),
    "shape of another size": ({"inputs": [tensor(shape=[1, 3, 9, 9])]}, BadRequest, "number of"),
    "no rows": ({"inputs": [image(shape=[0], data=[])]}, BadRequest, "shape of image"),
    "minus one row": ({"inputs": [image(shape=[-1])]}, BadRequest, "shape of image"),
    "true rows": ({"inputs": [image(shape=[True])]}, BadRequest, "shape of image"),
    "1.0 rows": ({"inputs": [image(shape=[1.0])]}, BadRequest, "shape of image"),
    "5 rows": ({"inputs": [image(shape=[5])]}, TooManyParts, "5 images, the limit is 4"),
    "10^30 rows": ({"inputs": [image(shape=[10**30])]}, TooManyParts, "the limit is 4"),
    "fewer data": ({"inputs": [image(shape=[2])]}, BadRequest, "data has 1 values"),
    "no data": ({"inputs": [image(data=None)]}, BadRequest, "neither data nor"),
    "not base64": ({"inputs": [image(data=["é"])]}, BadRequest, "not base64"),
    "broken base64": ({"inputs": [image(data=["abc"])]}, BadRequest, "not base64"),
    "infinite": ({"inputs": [tensor(data=[1e300] * 192)]}, BadRequest, "value of size inf"),
    "pixels to 255": ({"inputs": [tensor(data=[255] * 192)]}, BadRequest, r"scale pixels to \["),
    "bytes announced": (
        {"inputs": [image(data=None, parameters={"binary_data_size": 9})]},
        BadRequest,
        "binary_data_size is 9, but 0 bytes follow",
    ),
    "bytes and data": (
        {"inputs": [image(parameters={"binary_data_size": 9})]},
        BadRequest,
        "both data and a binary_data_size",
    ),
    "bytes of -1": (
        {"inputs": [image(data=None, parameters={"binary_data_size": -1})]},
        BadRequest,
        "is -1, but 0",
    ),
    "bytes of '9'": (
        {"inputs": [image(data=None, parameters={"binary_data_size": "9"})]},
        BadRequest,
        "must be an integer",
    ),
    "shared input": (
        {"inputs": [image(parameters={"shared_memory_region": "a"})]},
        NotOffered,
        "shared memory",
    ),
    "shared output": (
        {
            "inputs": [image()],
            "outputs": [{"name": "macs", "parameters": {"shared_memory_region": "a"}}],
        },
        NotOffered,
        "shared memory",
    ),
    "unknown output": (
        {"inputs": [image()], "outputs": [{"name": "x"}]},
        BadRequest,
        "'x' is no output: choose from probabilities, logits",
    ),
    "output twice": (
        {"inputs": [image()], "outputs": [{"name": "macs"}] * 2},
        BadRequest,
        "named twice",
    ),
    "many outputs": (
        {"inputs": [image()], "outputs": [{"name": "macs"}] * 1000},
        BadRequest,
        "1000 outputs: there are 6",
    ),
    "binary 1": (
        {"inputs": [image()], "outputs": [{"name": "macs", "parameters": {"binary_data": 1}}]},
        BadRequest,
        "binary_data is 1: it must be true or false",
    ),
    "classes of label": (
        {"inputs": [image()], "outputs": [{"name": "label", "parameters": {"classification": 1}}]},
        BadRequest,
        "classification of label",
    ),
    "no classes": (
        {"inputs": [image()], "outputs": [{"name": "logits", "parameters": {"classification": 0}}]},
        BadRequest,
        "classification of logits is 0",
    ),
    "unknown parameter": (
        {"inputs": [image()], "parameters": {"bugdet": 1}},
        BadParameter,
        "'bugdet' is no parameter: the known ones are binary_data_output, budget, cap",
    ),
    "deadline": (
        {"inputs": [image()], "parameters": {"deadline_ms": "5"}},
        BadParameter,
        "must be a number",
    ),
    "budget true": ({"inputs": [image()], "parameters": {"budget": True}}, BadParameter, "True"),
    "cap '1'": ({"inputs": [image()], "parameters": {"cap": "1"}}, BadParameter, "a number"),
    "parameters an array": ({"inputs": [image()], "parameters": [1]}, BadRequest, "an object"),
    "id a number": ({"id": 7, "inputs": [image()]}, BadRequest, "id is 7: it must be a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_read_request_bad_one_refused_in_a_short_sentence(card: Card, name: str) -> None:
    head, kind, words = BAD[name]
    with pytest.raises(ServiceError, match=words) as refusal:
        read(card, head)
    assert type(refusal.value) is kind
    assert len(str(refusal.value)) < 300
    str(refusal.value).encode()  # an answer must be UTF-8


def test_read_request_nan_as_bytes_refused(card: Card) -> None:
    values = VALUES.copy()
    values[0, 0, 0, 0] = np.nan
    entry = tensor(data=None, parameters={"binary_data_size": values.nbytes})
    with pytest.raises(BadRequest, match="value of size nan"):
        read(card, {"inputs": [entry]}, values.tobytes())


@pytest.mark.parametrize(
    ("size", "words"), [(3, "binary_data_size is 3"), (None, "no binary_data")]
)
def test_read_request_bytes_not_announced_refused(card: Card, size: int | None, words: str) -> None:
    entry = image(data=None, parameters={"binary_data_size": size})
    with pytest.raises(BadRequest, match=words):
        read(card, {"inputs": [entry]}, b"1234")


def test_read_request_json_longer_than_the_body_refused(card: Card) -> None:
    with pytest.raises(BadRequest, match="said to have 3 bytes, the body has 2"):
        read_request(b"{}", 3, card, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\xff{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": NaN}', "NaN is not a value"),
        (b'{"a": -Infinity}', "-Infinity is not a value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"a":' * 10**4 + b"1" + b"}" * 10**4, "nested too deeply"),
    ],
)
def test_read_object_no_json_object_refused(text: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_object(text)


@pytest.mark.parametrize("text", [b"[" + b"1," * 200_000 + b"1]", b"[]" * 20_001, b"{}" * 20_001])
def test_read_object_long_to_read_refused_unread(text: bytes) -> None:
    with pytest.raises(BodyTooLarge, match="or the values as binary data"):
        read_object(text)


def test_read_object_just_short_enough_is_read() -> None:
    assert len(read_object(b'{"a": [' + b"1," * 199_999 + b"1]}")["a"]) == 200_000
