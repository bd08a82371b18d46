"""Work is given up when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Scope

from service.errors import ClientGone

T = TypeVar("T")

_KEY = "rnp.presence"


class Presence:
    """Whether the client of a request is still there, as its connection says.

    Attributes:
        whole: all of the request has come, so that nothing waits for its client.
    """

    def __init__(self) -> None:
        self.whole = False
        self._gone = False
        self._task: asyncio.Task[Any] | None = None

    def attach(self, scope: Scope) -> None:
        """Let the request of this scope know."""
        scope[_KEY] = self

    def leave(self) -> None:
        """The client hung up: what is done for it ends."""
        self._gone = True
        if self._task:
            self._task.cancel()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work while the client is there.

        Raises:
            ClientGone: it hung up.
        """
        if self._gone:
            work.close()
            raise _gone()
        self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if self._gone and self._task:
                self._task.uncancel()
                raise _gone() from None
            raise
        finally:
            self._task = None


async def while_connected(scope: Scope, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but cancel it if the client hangs up; under another server than ours, do it.

    Raises:
        ClientGone: it hung up.
    """
    presence: Presence | None = scope.get(_KEY)
    return await (presence.during(work) if presence else work)


def is_whole(scope: Scope) -> bool:
    """Whether all of a request has come; under another server than ours nobody knows."""
    presence: Presence | None = scope.get(_KEY)
    return presence is not None and presence.whole


def _gone() -> ClientGone:
    return ClientGone("the client hung up before its answer")
