"""Tensors of the Open Inference Protocol v2, as JSON and as bytes; knows no HTTP and no model.

Values are in row-major order. As bytes they are little-endian, without gaps, and each element of a
BYTES tensor follows its length, a 4-byte unsigned integer.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import BadRequest

BYTES = "BYTES"
_DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
_SHOWN = 80
_LENGTH = struct.Struct("<I")

# Elements in order if the datatype is BYTES, else an array of the tensor's shape.
Values = npt.NDArray[Any] | list[bytes]


@dataclass(frozen=True)
class Spec:
    """What a model takes or gives.

    Attributes:
        shape: -1 where it is the number of images.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor with its values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values


def shown(value: Any) -> str:
    """A value as a refusal shows it: short, and printable whatever it is."""
    text = reprlib.repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def from_json(data: Any, datatype: str, shape: tuple[int, ...]) -> Values:
    """Values from a JSON array, flat or nested as the shape is; BYTES are strings, as UTF-8.

    Raises:
        BadRequest: not such an array, or elements of another type.
    """
    flat = _flat(data, shape)
    if datatype == BYTES:
        _check_types(flat, {str}, "strings")
        return [text.encode("utf-8", "surrogatepass") for text in flat]
    _check_types(flat, {int, float}, "numbers")
    try:
        # What is too large for the type becomes infinite, for the reader to refuse.
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(_DTYPES[datatype]).reshape(shape)
    except OverflowError as error:
        raise BadRequest("data holds an integer too large for a number: send smaller") from error


def from_binary(data: bytes, datatype: str, shape: tuple[int, ...]) -> Values:
    """Values from bytes, which they must fill exactly.

    Raises:
        BadRequest: too few bytes, or too many.
    """
    if datatype == BYTES:
        return _elements(data, math.prod(shape))
    dtype = np.dtype(_DTYPES[datatype])
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise BadRequest(
            f"{len(data)} bytes of data: {datatype} of shape {list(shape)} takes {wanted}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def to_json(tensor: Tensor) -> list[Any]:
    """Values as a flat list for JSON; BYTES must be UTF-8."""
    if isinstance(tensor.values, list):
        return [element.decode() for element in tensor.values]
    numbers: list[Any] = tensor.values.ravel().tolist()
    return numbers


def to_binary(tensor: Tensor) -> bytes:
    """Values as bytes."""
    if isinstance(tensor.values, list):
        pieces = ((_LENGTH.pack(len(element)), element) for element in tensor.values)
        return b"".join(chain.from_iterable(pieces))
    return tensor.values.astype(_DTYPES[tensor.datatype]).tobytes()


def classification(
    name: str, scores: npt.NDArray[Any], orders: Sequence[Sequence[int]], labels: Sequence[str]
) -> Tensor:
    """The best classes of each image in place of its scores: "value:index:label" as BYTES.

    Args:
        scores: (N, C). orders: (N, k) indices of the best classes, best first.
    """
    elements = [
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, order in zip(scores.tolist(), orders, strict=True)
        for index in order
    ]
    return Tensor(name, BYTES, (len(orders), len(orders[0])), elements)


def _flat(data: Any, shape: tuple[int, ...]) -> list[Any]:
    """Flatten level by level, each checked first: ragged or deep input takes no memory."""
    if type(data) is not list:
        raise BadRequest(f"data is {shown(data)}: it must be an array")
    for size in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if any(type(row) is not list or len(row) != size for row in data):
            raise BadRequest(f"data is not nested as the shape {list(shape)} says")
        data = list(chain.from_iterable(data))
    wanted = math.prod(shape)
    if len(data) != wanted:
        raise BadRequest(f"data has {len(data)} values: shape {list(shape)} takes {wanted}")
    flat: list[Any] = data
    return flat


def _check_types(flat: list[Any], allowed: set[type], words: str) -> None:
    # Checked before numpy sees them: it would turn strings into numbers, or pad them all to the
    # longest one.
    if not set(map(type, flat)) <= allowed:
        wrong = next(value for value in flat if type(value) not in allowed)
        raise BadRequest(f"data holds {shown(wrong)}: its elements must be {words}")


def _elements(data: bytes, count: int) -> list[bytes]:
    elements, offset = [], 0
    for number in range(count):
        start = offset + _LENGTH.size
        if start > len(data):
            raise BadRequest(f"the data ends before the length of element {number}, of {count}")
        (size,) = _LENGTH.unpack_from(data, offset)
        offset = start + size
        if offset > len(data):
            raise BadRequest(
                f"element {number} has {size} bytes by its length, but {len(data) - start} follow"
            )
        elements.append(data[start:offset])
    if offset != len(data):
        raise BadRequest(f"{len(data) - offset} bytes follow the last of {count} elements")
    return elements
