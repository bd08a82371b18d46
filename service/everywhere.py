"""What changes a service of several processes is done in all of them."""

from __future__ import annotations

import asyncio
import logging
import re

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Uneven
from service.metrics import Metrics
from service.notes import NOTES
from service.routes.errors import refused
from service.siblings import Reply, Siblings, from_sibling

_CHANGES = re.compile(
    r"PUT /budget|(PUT|DELETE) /models/[^/]+|POST /v2/repository/models/[^/]+/(un)?load"
)
_REMOVES = re.compile(r"DELETE .*|POST .*/unload")
# No body of a change is longer, as their routes see to.
_BODY_BYTES = 64 * 2**10

logger = logging.getLogger(__name__)


class Everywhere:
    """ASGI middleware: what an operator changes here is changed in the others, one after another.

    If one of them does not follow, the answer says so; the change can be asked for again. So a
    model that is no more in one of them can still be removed from the others.
    """

    def __init__(self, app: ASGIApp, siblings: Siblings, metrics: Metrics) -> None:
        self._app = app
        self._siblings = siblings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, here and then to the others."""
        what = f"{scope['method']} {scope['path']}" if scope["type"] == "http" else ""
        # As a route sees it, whose pattern lets a line feed at the end through.
        what = what.removesuffix("\n")
        if not _CHANGES.fullmatch(what) or from_sibling(scope):
            await self._app(scope, receive, send)
            return
        # Before the others wait for it: a client may take its time to send it.
        body = _Body()
        await body.read(receive)
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        removes = _REMOVES.fullmatch(what) is not None
        async with self._siblings.alone():
            await self._app(scope, body.receive, keep)
            status = answer[0]["status"] if answer else 0
            absent = status == 404 and removes
            replies = []
            if 0 < status < 400 or absent:
                replies = await asyncio.to_thread(self._tell, scope, body.content)
        done = [reply for reply in replies if 200 <= reply.status < 400]
        there = [404] if removes else []
        if behind := [one for one in replies if one not in done and one.status not in there]:
            await self._refusal(behind, scope["path"])(scope, receive, send)
        elif absent and done:
            if notes := NOTES.get():
                notes.code = None
            await Response(done[0].body, done[0].status)(scope, receive, send)
        else:
            for message in answer:
                await send(message)

    def _tell(self, scope: Scope, body: bytes) -> list[Reply]:
        """What the others say to the same."""
        target = scope["raw_path"].decode("latin-1")  # no change has a query
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        # One change has one id in all logs; the last header of a name holds.
        headers.append(("x-request-id", scope["state"]["request_id"]))
        return self._siblings.tell(scope["method"], target, headers, body)

    def _refusal(self, behind: list[Reply], path: str) -> Response:
        said = "; ".join(f"process {one.sibling} did not: {one.said('error')}" for one in behind)
        logger.error("the processes differ", extra={"said": said})
        error = Uneven(f"not done in all processes: {said}: ask for it again")
        return refused(error, path, self._metrics)


class _Body:
    """The body of a request, read ahead of the app, to which it then looks as it came.

    One that is longer than any that is allowed is left for the app to refuse.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._left = iter(self._messages)
        self._error: Exception | None = None

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._messages)

    async def read(self, receive: Receive) -> None:
        """Read all of it; what goes wrong is told when the app asks for it."""
        self._receive, size, more = receive, 0, True
        try:
            while more and size <= _BODY_BYTES:
                message = await receive()
                self._messages.append(message)
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
        except Exception as error:
            self._error = error

    async def receive(self) -> Message:
        """The next message for the app."""
        if message := next(self._left, None):
            return message
        if self._error:
            raise self._error
        return await self._receive()
