"""Malformed requests of the Open Inference Protocol: JSON, lengths, bytes and encodings."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import random
import struct
import zlib
from typing import Any

from benchmarks.fuzz.files import image_files
from benchmarks.fuzz.images import ANY, edge, mutated_image
from benchmarks.fuzz.shots import Shot, post

IMAGE_SIZE = 32  # of the input of the default bundle


def _inference(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    """A valid request of the Open Inference Protocol, in part or all in bytes."""
    png = image_files()["png"]
    entry: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES"}
    data = b""
    match rng.randrange(3):
        case 0:
            entry["data"] = [base64.b64encode(rng.choice((png, mutated_image(rng)))).decode()]
        case 1:
            data = struct.pack("<I", len(png)) + png
            entry["parameters"] = {"binary_data_size": len(data)}
        case _:
            shape = [1, 3, IMAGE_SIZE, IMAGE_SIZE]
            data = bytes(4 * 3 * IMAGE_SIZE**2)
            entry = {"name": "input", "shape": shape, "datatype": "FP32"}
            entry["parameters"] = {"binary_data_size": len(data)}
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}, {"name": "label"}]
    return {"id": "x", "inputs": [entry], "outputs": outputs, "parameters": {"budget": 0.2}}, data


def _odd(rng: random.Random) -> Any:
    """A value that hardly anything expects."""
    return rng.choice(
        (
            None, True, 0, -1, 2**31, 2**63, 10**400, 1e308, 0.5, "", "x" * 1000, "\0", "\ud800",
            [], {}, [[]], [None], [[1], 2], {"a": {}}, "image", "FP32", "BYTES", [1], [-1],
            [2**40, 2**40], ["AA"], ["é"], float("nan"), float("inf"), edge(rng),
        )
    )  # fmt: skip


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replace, remove, double or add something, somewhere inside."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict | list):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                visit(node[key])

    visit(value)
    for _ in range(rng.choice((1, 1, 3))):
        node, key = rng.choice(places)
        present = key in node if isinstance(node, dict) else key < len(node)
        match rng.randrange(4):
            case 0 if present:
                del node[key]
            case 1 if isinstance(node, list):
                node.extend(node[:] or [None])
            case 1:
                node[rng.choice(("shared_memory_region", "data", "x", "cap", "deadline_ms"))] = (
                    _odd(rng)
                )
            case _ if present:
                node[key] = _odd(rng)
    return value


def json_text(rng: random.Random, request: Any) -> bytes:
    text = json.dumps(request).encode()
    if rng.random() < 0.7:
        return text
    deep = rng.choice((100, 5000))
    return rng.choice(
        (
            b"[" * deep,
            b'{"inputs":' * deep + b"1" + b"}" * deep,
            text.replace(b"0.2", b"9" * rng.choice((30, 5000))),
            text.replace(b"0.2", b"1e999"),
            text[:-1] + b',"id":"y","inputs":[]}',
            b"\xef\xbb\xbf" + text,
            text.decode().encode("utf-16"),
            rng.choice(ANY)(rng, text),
            b'{"inputs":[{"name":"image","data":[' + b'"",' * 5000 + b'""]}]}',
            b'{"inputs":[{"name":"input","data":[' + b"[]," * 15_000 + b"[]]}]}",
        )
    )


def json_shot(rng: random.Random, model: str) -> Shot:
    """JSON of the Open Inference Protocol whose values, or whose text, are off."""
    request, data = _inference(rng)
    text = json_text(rng, mutate_json(rng, request) if rng.random() < 0.8 else request)
    headers = [("inference-header-content-length", len(text))] if data else []
    return post("v2", _path(rng, model), text + data, *headers)


def binary_shot(rng: random.Random, model: str) -> Shot:
    """The same with lengths that do not fit, and damaged bytes."""
    request, data = _inference(rng)
    data = rng.choice(ANY)(rng, data)
    size = rng.choice((len(data), len(data), edge(rng), -1))
    request["inputs"][0].setdefault("parameters", {})["binary_data_size"] = size
    text = json.dumps(request).encode()
    told = rng.choice(
        (len(text), len(text), len(text) + 1, len(text) - 1, 0, -1, edge(rng), "", "1e3", "٣",
         "0x1", 10**30, f"{len(text)}, {len(text)}", f"+{len(text)}")
    )  # fmt: skip
    return post("binary", _path(rng, model), text + data, ("inference-header-content-length", told))


def _path(rng: random.Random, model: str) -> str:
    names = (model,) * 40 + ("", "..", "%00", "x" * 3000, f"{model}%2f..", "stats", "%ff", "é")
    version = rng.choice(("",) * 30 + ("/versions/1", "/versions/2", "/versions/", "/versions/%0a"))
    return f"/v2/models/{rng.choice(names)}{version}/infer"


@functools.lru_cache(64)
def _packed(plain: bytes, form: int) -> bytes:
    if form == 0:
        return gzip.compress(plain, mtime=0)
    if form == 1:
        return gzip.compress(gzip.compress(plain, mtime=0), mtime=0)
    stream = zlib.compressobj(9, zlib.DEFLATED, 15 if form == 2 else -15)
    return stream.compress(plain) + stream.flush()


_ZEROS = [bytes(size) for size in (0, 10**6, 4 * 10**7)]


def encoded_shot(rng: random.Random, model: str) -> Shot:
    """A compressed body that is cut, damaged, a bomb, or of another encoding than it says."""
    request, data = _inference(rng)
    text = json.dumps(request).encode()
    plain = rng.choice((text + data, text + data, rng.choice(_ZEROS)))
    packed = rng.choice((_packed(plain, rng.randrange(4)), plain[: 10**6]))
    if rng.random() < 0.6:
        packed = rng.choice(ANY)(rng, packed)
    encodings = (
        "gzip",
        "deflate",
        "gzip, deflate",
        "identity",
        "br",
        "x" * 500,
        "GZIP",
        "",
        "gzip;q=1",
    )
    headers: list[tuple[str, object]] = [("content-encoding", rng.choice(encodings))]
    if data:
        headers.append(("inference-header-content-length", len(text)))
    headers.append(
        ("accept-encoding", rng.choice(("gzip", "deflate", "*", "gzip;q=nan", "br;;,", "")))
    )
    path = rng.choice((f"/v2/models/{model}/infer",) * 4 + ("/classify",))
    return post("encoded", path, packed, *headers)
