"""Before a route sees a request: has it a key that allows it, and does its client ask too often?"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.metrics import Metrics
from service.notes import NOTES
from service.routes.errors import refused
from service.security.access import Role, role_of
from service.security.keys import Key, Keyring
from service.security.rates import Buckets, address_group
from service.siblings import from_sibling

_BEARER = "bearer "


class Guard:
    """ASGI middleware; nothing of a refused request's body is read.

    Args:
        keyring: None if no route needs a key.
        buckets: None if nothing limits the rate; routes that are anyone's are never limited.
        routes: those behind it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring | None,
        buckets: Buckets | None,
        metrics: Metrics,
        routes: Sequence[BaseRoute],
    ) -> None:
        self._app = app
        self._routes = routes
        self._keyring = keyring
        self._buckets = buckets
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        role = role_of(scope["method"], scope["path"])
        # What another process forwards was paid for there.
        buckets = None if from_sibling(scope) else self._buckets
        if role == Role.ANYONE:
            await self._app(scope, receive, send)
            return
        try:
            key = self._admit(scope, role)
            client = _client(scope, key)
            if buckets:
                buckets.take(client)
        except ServiceError as error:
            self._name_route(scope)
            await refused(error, scope["path"], self._metrics)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            # How many images a request holds shows only when its body was read; one is paid for.
            notes = NOTES.get()
            if buckets and notes and notes.asked > 1:
                buckets.charge(client, notes.asked - 1)

    def _admit(self, scope: Scope, role: Role) -> Key | None:
        if self._keyring is None:
            return None
        key = self._keyring.identify(_presented(scope))
        if key and (notes := NOTES.get()):
            notes.key = key.name
        self._keyring.check(key, role, f"{scope['method']} {scope['path']}")
        return key

    def _name_route(self, scope: Scope) -> None:
        """Let the metrics know the route of a request that never gets to the router."""
        for route in self._routes:
            match, found = route.matches(scope)
            if match == Match.FULL:
                scope["route"] = found["route"]
                return


def _presented(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")


def _client(scope: Scope, key: Key | None) -> str:
    """Whose bucket a request takes from. A forwarded address is in the scope only if believed."""
    if key:
        return f"key {key.name}"
    host, _ = scope.get("client") or ("", 0)
    return address_group(host)
