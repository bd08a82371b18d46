from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.errors import BadRequest
from service.protocol.tensors import (
    Tensor,
    classification,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

ELEMENTS = [b"first", b"", "é".encode(), bytes(range(256))]


@pytest.mark.parametrize(
    ("datatype", "dtype"), [("FP32", np.float32), ("FP64", np.float64), ("INT64", np.int64)]
)
def test_numbers_as_bytes_and_back_are_the_same(datatype: str, dtype: type) -> None:
    values = np.random.default_rng(0).normal(0, 1e3, (2, 3, 4)).astype(dtype)
    data = to_binary(Tensor("x", datatype, values.shape, values))
    assert data == values.astype(values.dtype.newbyteorder("<")).tobytes()
    np.testing.assert_array_equal(from_binary(data, datatype, values.shape), values)


def test_numbers_not_contiguous_are_written_in_row_major_order() -> None:
    values = np.arange(6, dtype=np.int64).reshape(2, 3).T
    tensor = Tensor("x", "INT64", (3, 2), values)
    assert to_json(tensor) == [0, 3, 1, 4, 2, 5]
    assert to_binary(tensor) == struct.pack("<6q", 0, 3, 1, 4, 2, 5)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_numbers_as_json_and_back_are_the_same(datatype: str) -> None:
    values = (
        np.random.default_rng(0).normal(size=(2, 3)).astype(from_json([0], datatype, (1,)).dtype)
    )
    text = json.dumps(to_json(Tensor("x", datatype, (2, 3), values)))
    np.testing.assert_array_equal(from_json(json.loads(text), datatype, (2, 3)), values)


@pytest.mark.parametrize(
    "data",
    [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [[[1], [2], [3]], [[4], [5], [6.0]]]],
)
def test_from_json_takes_flat_and_nested_alike(data: list[Any]) -> None:
    values = from_json(data, "FP32", (2, 3, 1))
    assert values.shape == (2, 3, 1)
    assert values.ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_bytes_are_the_clients_form() -> None:
    data = to_binary(Tensor("x", "BYTES", (4,), ELEMENTS))
    assert data == serialize_byte_tensor(np.array(ELEMENTS, object)).item()
    assert deserialize_bytes_tensor(data).tolist() == ELEMENTS
    assert from_binary(data, "BYTES", (4,)) == ELEMENTS


def test_bytes_as_json_are_text() -> None:
    assert to_json(Tensor("x", "BYTES", (2,), ["é".encode(), b"a"])) == ["é", "a"]
    assert from_json(["é", "\ud800"], "BYTES", (2,)) == ["é".encode(), b"\xed\xa0\x80"]


@pytest.mark.parametrize("size", [0, 1, 15, 17, 64])
def test_from_binary_wrong_number_of_bytes_refused(size: int) -> None:
    with pytest.raises(BadRequest, match=rf"{size} bytes of data: FP32 of shape \[2, 2\] takes 16"):
        from_binary(bytes(size), "FP32", (2, 2))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "before the length of element 0, of 2"),
        (b"\x01\x00\x00", "before the length of element 0"),
        (b"\x01\x00\x00\x00a", "before the length of element 1"),
        (b"\xff\xff\xff\xffab", "element 0 has 4294967295 bytes by its length, but 2 follow"),
        (b"\x00\x00\x00\x00\x02\x00\x00\x00a", "element 1 has 2 bytes by its length, but 1 follow"),
        (bytes(9), "1 bytes follow the last of 2 elements"),
    ],
)
def test_from_binary_malformed_lengths_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        from_binary(data, "BYTES", (2,))


def deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "data is None: it must be an array"),
        ({"a": 1}, "must be an array"),
        ("1234", "must be an array"),
        ([], r"0 values: shape \[2, 2\] takes 4"),
        ([1, 2, 3], "3 values"),
        ([[1, 2], [3]], "not nested as the shape"),
        ([[1, 2], 3], "not nested"),
        ([1, 2, [3], 4], "holds .3.: its elements must be numbers"),
        ([[1, 2, 3], [4, 5, 6]], "not nested"),
        ([[[1], [2]], [[3], [4]]], "must be numbers"),
        (deep(500), "not nested"),
        ([1, 2, 3, "4"], "holds '4'"),
        ([1, 2, 3, None], "holds None"),
        ([1, 2, 3, True], "holds True"),
        ([1, 2, 3, 10**400], "too large"),
        (["x" * 10**6, *[""] * 3], "must be numbers"),
    ],
)
def test_from_json_other_data_refused_in_a_short_sentence(data: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refusal:
        from_json(data, "FP32", (2, 2))
    assert len(str(refusal.value)) < 200


def test_from_json_bytes_that_are_no_strings_refused() -> None:
    with pytest.raises(BadRequest, match="must be strings"):
        from_json([1], "BYTES", (1,))


def test_from_json_number_beyond_the_type_is_infinite() -> None:
    assert np.isinf(from_json([1e300], "FP32", (1,))).all()


def test_classification_tells_value_index_and_label() -> None:
    scores = np.array([[0.25, 0.75], [1, 0]], np.float32)
    tensor = classification("p", scores, [[1, 0], [0, 1]], ["a:b", "é"])
    assert (tensor.datatype, tensor.shape) == ("BYTES", (2, 2))
    assert to_json(tensor) == ["0.750000:1:é", "0.250000:0:a:b", "1.000000:0:a:b", "0.000000:1:é"]
