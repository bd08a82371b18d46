"""What `receive` gives; how slow bodies end over HTTP is in test_connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.presence import Presence
from service.security.bodies import BodyLimits
from service.settings import Settings

LIMITS = Settings(body_timeout_s=0.1, body_bytes_per_s=1e9, max_body_bytes=100_000)


async def _send(message: Message) -> None:
    pass


def run(
    client: Callable[[], Awaitable[Message]],
    server: Callable[[Receive], Awaitable[Any]],
    method: str,
    *,
    whole: bool = False,
) -> Any:
    """What `server` makes of what `client` sends through the limits.

    `whole` says that all of it has come.
    """
    result = None
    scope: Scope = {"type": "http", "method": method}
    presence = Presence()
    presence.whole = whole
    presence.attach(scope)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal result
        result = await server(receive)

    asyncio.run(BodyLimits(app, LIMITS)(scope, client, _send))
    return result


def test_wait_for_a_hang_up_after_the_body_has_no_limit() -> None:
    messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

    async def client() -> Message:
        if len(messages) == 1:
            await asyncio.sleep(0.3)
        return messages.pop(0)

    async def server(receive: Receive) -> list[str]:
        return [(await receive())["type"] for _ in range(2)]

    assert run(client, server, "POST") == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(("whole", "status"), [(False, 408), (True, None)])
def test_only_a_body_that_is_still_to_come_is_timed(whole: bool, status: int | None) -> None:
    async def client() -> Message:
        await asyncio.sleep(0.3)
        return {"type": "http.request", "body": b"x"}

    async def server(receive: Receive) -> int | None:
        try:
            await receive()
        except HTTPException as error:
            return error.status_code
        return None

    assert run(client, server, "POST", whole=whole) == status


@pytest.mark.parametrize(
    ("method", "most"), [("POST", 100_000), ("PUT", 65_536), ("DELETE", 65_536)]
)
def test_body_of_settings_has_a_smaller_limit(method: str, most: int) -> None:
    async def client() -> Message:
        return {"type": "http.request", "body": bytes(1024), "more_body": True}

    async def server(receive: Receive) -> tuple[int, int]:
        size = 0
        try:
            while True:
                size += len((await receive())["body"])
        except HTTPException as error:
            return size, error.status_code

    assert run(client, server, method) == (most // 1024 * 1024, 413)
