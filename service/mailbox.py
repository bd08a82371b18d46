"""What other threads found out is brought to the event loop, all that came meanwhile at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

from service.errors import ServiceError

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Settles futures of one event loop from any thread.

    Waking the loop is a system call. Here one wake-up serves all that was put in before the loop
    gets to run, such as the answers of a batch.
    """

    def __init__(self) -> None:
        self._letters: deque[tuple[asyncio.Future[T | ServiceError], T | Exception]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[T | ServiceError], outcome: T | Exception) -> None:
        """Let a future have this result, or raise this error, unless it is done by then.

        A refusal is a result: raised, an error holds all frames that it came through, and they it.
        """
        self._letters.append((future, outcome))
        # Without a lock: at worst two threads wake the loop, and the second time it finds nothing.
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # First, so that whatever is put in from here on wakes the loop again.
        self._woken = False
        while self._letters:
            future, outcome = self._letters.popleft()
            if future.done():
                continue
            if isinstance(outcome, Exception) and not isinstance(outcome, ServiceError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
