"""What a connection writes, reads again, or waits for, without uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import httptools

from service.errors import ServiceError
from service.routes.errors import error_response
from service.security.headers import OF_REFUSALS

# Headers of one hop, by which a client offers another protocol.
_OFFER = (b"connection", b"upgrade", b"http2-settings")
_CONTINUE = b"HTTP/1.1 100 "


class _TurnedAway:
    """What uvicorn sees of a request that was refused at its head: it is over."""

    response_complete = True
    message_event = asyncio.Event()


TURNED_AWAY: Any = _TurnedAway()


class Timer:
    """Does something later, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither stopped nor due since."""
        return self._handle is not None

    def start(self, seconds: float, do: Callable[[], object]) -> None:
        """Start it anew."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due, do)

    def stop(self) -> None:
        """Do it not."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self, do: Callable[[], object]) -> None:
        self._handle = None
        do()


def answer(error: ServiceError, target: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    """A refusal as bytes, with these headers beside those of any refusal."""
    response = error_response(error, target.decode("latin-1"))
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()
    all_headers = (*response.raw_headers, *OF_REFUSALS, *headers)
    lines = [status, *(b"%s: %s" % each for each in all_headers), b"", bytes(response.body)]
    return b"\r\n".join(lines)


class CorkedTransport:
    """What an answer is written to: its head goes out with the first of its body, if there is any.

    Each on its own they would take two system calls, which is a seventh of a small request's time.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport, self._close = transport, close
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Called by uvicorn; before the head there may be a 100 (Continue)."""
        if self._head is None and not data.startswith(_CONTINUE):
            self._head = data
        else:
            self._transport.write(self._head + data if self._head else data)
            self._head = self._head and b""

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        """Called by uvicorn."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Called by uvicorn."""
        self.flush()
        self._close()


def head_without_offer(
    parser: httptools.HttpRequestParser, url: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The head that was parsed last, as if its client had not offered another protocol."""
    version = parser.get_http_version().encode()
    lines = [b"%s %s HTTP/%s" % (parser.get_method(), url, version)]
    lines += [b"%s: %s" % (name, value) for name, value in headers if name not in _OFFER]
    if not parser.should_keep_alive():
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"\r\n"])
