"""Requests as bytes, and what answers say."""

from __future__ import annotations

import json
from collections.abc import Callable

# What an answer says, as columns of an `Outcome`.
Reader = Callable[[bytes], dict[str, float]]


def post(path: str, body: bytes, content_type: str, host: str = "localhost") -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_classification(body: bytes) -> dict[str, float]:
    """What an answer of `POST /classify` says."""
    answer = json.loads(body)
    timing = answer["timing_ms"]
    return {
        "answer": answer["predictions"][0]["index"],
        "fraction": answer["compute"]["fraction"],
        "decode_ms": timing["decode"],
        "inference_ms": timing["inference"],
        "total_ms": timing["total"],
    }


def read_index(body: bytes) -> dict[str, float]:
    """What an answer says that holds the class's index alone, as a rival's does."""
    return {"answer": float(json.loads(body)["index"])}
