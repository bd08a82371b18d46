"""Headers that tell browsers what not to do with an answer."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import csp

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_POLICY = csp.HEADER.lower().encode()
_CACHE = b"cache-control"
# Of a refusal, which is no page and not to be kept.
OF_REFUSALS = (*_ALWAYS, (_POLICY, csp.NO_PAGE.encode()), (_CACHE, b"no-store"))
# The files of pages may be kept; they carry tags by which to ask for them anew.
_KEPT = "/static/"


class SecurityHeaders:
    """ASGI middleware; a policy or a rule for caches that a route sets itself stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and complete the headers of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kept = scope["path"].startswith(_KEPT)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += _ALWAYS
                if _POLICY not in present:
                    headers.append((_POLICY, csp.NO_PAGE.encode()))
                if not kept and _CACHE not in present:
                    headers.append((_CACHE, b"no-store"))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)
