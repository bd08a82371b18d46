"""Around every request: its id, its metrics, its log line, and an answer if a route breaks."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining, InternalError
from service.logs import REQUEST_ID
from service.metrics import Metrics
from service.notes import NOTES, Notes
from service.routes.errors import refused
from service.siblings import from_sibling

_ID_NAME = b"x-request-id"

# Routes that machines ask every few seconds; their lines would bury the others.
QUIET = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
_OTHER = "other"
_SHOWN_PATH = 200
_VALID_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")

# Seeded by the system, which to ask for every id would take longer than all else about it.
_ids = random.Random()

logger = logging.getLogger(__name__)


class Observer:
    """ASGI middleware; an `X-Request-ID` that is not plain or too long is replaced.

    While the service is `leaving`, every answer closes its connection: on one that stays open, a
    request could be under way when the server closes it.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, leaving: Callable[[], bool] = lambda: False
    ) -> None:
        self._app = app
        self._metrics = metrics
        # Found by their labels once, which takes longer than to count.
        self._requests = cache(metrics.requests.labels)
        self._seconds = cache(metrics.request_seconds.labels)
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and observe it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, own_id = time.perf_counter(), request_id(scope["headers"])
        notes = Notes(trace_id=scope.get("state", {}).get("trace_id"))
        REQUEST_ID.set(own_id)
        NOTES.set(notes)
        scope.setdefault("state", {}).update(request_id=own_id, started=started)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (_ID_NAME, own_id.encode())]
                if self._leaving():
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if status or not self._leaving():
                raise
            cut = Draining("the service stopped before the answer was ready: ask again")
            await refused(cut, scope["path"], self._metrics)(scope, receive, send_with_id)
        except Exception:
            logger.exception("request failed")
            if status:
                raise
            error = InternalError(f"something broke here: report request {own_id} to the operator")
            await refused(error, scope["path"], self._metrics)(scope, receive, send_with_id)
        finally:
            self._observe(scope, notes, status, time.perf_counter() - started)

    def _observe(self, scope: Scope, notes: Notes, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _OTHER)
        # What another process passes on or asks for is counted there.
        if not from_sibling(scope):
            self._requests(route, status).inc()
            self._seconds(route).observe(seconds)
        logger.log(
            logging.DEBUG if route in QUIET else logging.INFO,
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"][:_SHOWN_PATH],
                "status": status,
                "seconds": round(seconds, 6),
                **_noted(notes),
            },
        )


class Heads:
    """ASGI middleware: a HEAD is a GET to the routes; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            scope["route"] = inner.get("route")


def _noted(notes: Notes) -> dict[str, Any]:
    """What is known of a request; the key's name is in every line of it anyway."""
    fields: dict[str, Any] = {}
    if notes.code is not None:
        fields["code"] = notes.code
    if notes.trace_id is not None:
        fields["trace_id"] = notes.trace_id
    if notes.images:
        fields["model"], fields["images"] = notes.model, len(notes.images)
        fields["budget"], fields["fraction"] = notes.budget, round(notes.fraction, 4)
    return fields


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that a request came with, or a new one if it had none or no plain one."""
    given = next((value for name, value in headers if name == _ID_NAME), b"")
    return given.decode() if _VALID_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"
