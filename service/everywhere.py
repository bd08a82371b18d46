"""What changes a service of several processes is done in all of them."""

from __future__ import annotations

import asyncio
import json
import logging

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Uneven
from service.notes import note_refusal
from service.routes.errors import error_response
from service.security.access import Role, role_of
from service.siblings import Reply, Siblings, from_sibling

logger = logging.getLogger(__name__)


class Everywhere:
    """ASGI middleware: what an operator changes here is changed in the others, one after another.

    If one of them does not follow, the answer says so; the change can be asked for again. So a
    model that is no more in one of them can still be removed from the others.
    """

    def __init__(self, app: ASGIApp, siblings: Siblings) -> None:
        self._app = app
        self._siblings = siblings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, here and then to the others."""
        if scope["type"] != "http" or from_sibling(scope) or not _changes(scope):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        answer: list[Message] = []

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def keep(message: Message) -> None:
            answer.append(message)

        async with self._siblings.alone():
            await self._app(scope, read, keep)
            status = answer[0]["status"] if answer else 0
            absent = status == 404 and _removes(scope)
            replies = []
            if 0 < status < 400 or absent:
                replies = await asyncio.to_thread(self._tell, scope, bytes(body))
        done = [reply for reply in replies if 200 <= reply.status < 400]
        there = [404] if _removes(scope) else []
        if behind := [one for one in replies if one not in done and one.status not in there]:
            await _refusal(behind, scope["path"])(scope, receive, send)
        elif absent and done:
            await Response(done[0].body, done[0].status)(scope, receive, send)
        else:
            for message in answer:
                await send(message)

    def _tell(self, scope: Scope, body: bytes) -> list[Reply]:
        """What the others say to the same."""
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        return list(self._siblings.tell(scope["method"], target, headers, body))


def _refusal(behind: list[Reply], path: str) -> ASGIApp:
    said = "; ".join(f"process {one.sibling} did not: {_said(one)}" for one in behind)
    logger.error("the processes differ", extra={"said": said})
    error = Uneven(f"done, but not in all processes: {said}: ask for it again")
    note_refusal(error.code)
    return error_response(error, path)


def _changes(scope: Scope) -> bool:
    reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
    return not reads and role_of(scope["method"], scope["path"]) == Role.OPERATOR


def _removes(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "DELETE" or path.endswith("/unload")


def _said(reply: Reply) -> str:
    text = reply.body.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        return text
