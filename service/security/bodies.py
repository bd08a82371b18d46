"""Bodies that come too slowly, break off or never end, whichever route reads them."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.presence import is_whole
from service.settings import Settings

# Of requests that carry no image: a few settings.
_SMALL_BYTES = 64 * 2**10


class BodyLimits:
    """ASGI middleware; `read_body` refuses earlier what announces that it is too long."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body watched."""
        if scope["type"] == "http":
            small = scope["method"] != "POST"
            max_bytes = _SMALL_BYTES if small else self._settings.max_body_bytes
            receive = _Body(scope, receive, max_bytes, self._settings).receive
        await self._app(scope, receive, send)


class _Body:
    """Only the time spent waiting for the client counts, not that spent on what it sent.

    Raises from `receive` what frameworks that read a body let through; it becomes BodyTooSlow,
    BodyTooLarge or, where the client hung up before its end, ClientGone.
    """

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int, settings: Settings) -> None:
        self._scope, self._receive = scope, receive
        self._max_bytes = max_bytes
        self._timeout_s, self._bytes_per_s = settings.body_timeout_s, settings.body_bytes_per_s
        self._bytes, self._waited_s, self._whole = 0, 0.0, False

    async def receive(self) -> Message:
        """The next message, in time; after the body's end there is none to wait for."""
        if self._whole:
            return await self._receive()
        # Most bodies have come with their heads: a timer would take a fiftieth of a small request.
        message = await (self._receive() if is_whole(self._scope) else self._received_in_time())
        if message["type"] == "http.disconnect":
            raise HTTPException(499, "the client hung up before the end of its body")
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._max_bytes:
            sentence = f"the body has more bytes, the limit is {self._max_bytes}: send less"
            raise HTTPException(413, sentence)
        return message

    async def _received_in_time(self) -> Message:
        clock = asyncio.get_running_loop().time
        started, allowed_s = clock(), self._timeout_s + self._bytes / self._bytes_per_s
        try:
            async with asyncio.timeout(allowed_s - self._waited_s):
                message = await self._receive()
        except TimeoutError as error:
            raise self._too_slow(allowed_s) from error
        self._waited_s += clock() - started
        return message

    def _too_slow(self, allowed_s: float) -> HTTPException:
        return HTTPException(
            408,
            f"{self._bytes} bytes of the body came in {allowed_s:.1f} s, the limit is "
            f"{self._timeout_s:g} s and a second more per {self._bytes_per_s:g} bytes: send it "
            "faster, or less",
        )
