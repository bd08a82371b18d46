"""A request as it goes over the wire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shot:
    """A request: its line and headers, and its body, as they go over the wire.

    Attributes:
        kind: what is malformed about it.
        framed: whether its length is told rightly; else only some answer, or none, is expected.
    """

    kind: str
    head: bytes
    body: bytes
    framed: bool = True

    @property
    def wire(self) -> bytes:
        """All bytes."""
        return self.head + self.body


def post(kind: str, path: str, body: bytes, *headers: tuple[str, object]) -> Shot:
    """A request with a body whose length is told."""
    lines = [f"POST {path} HTTP/1.1", "host: fuzz", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return Shot(kind, "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n", body)
