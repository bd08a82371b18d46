"""Takes connections from a port that several processes share, so that all have about as many."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from service.siblings import ABSENT, Siblings

logger = logging.getLogger(__name__)

# How long a connection is left to a process that has fewer: it may be busy, but not for so long.
_LEAVE_S = 0.002
# More connections than another has that are no reason to leave one to it, and a share of them.
_MORE, _MORE_SHARE = 1, 1 / 16
# Connections that may wait to be taken; the system may allow fewer.
_BACKLOG = 2048
# After an error that stays for a while, as that there are too many open files.
_PAUSE_S = 0.5


class Acceptor:
    """What `asyncio.Server` is for a socket of one process.

    All processes are woken by a new connection and whoever is first takes it, which is often the
    one that just took another. Clients keep their connections, so those who share a process with
    many would wait, beside one that is idle.

    Args:
        listener: bound and shared.
        create: makes the protocol of a connection.
        count: tells how many connections this process has.
    """

    def __init__(
        self,
        listener: socket.socket,
        siblings: Siblings,
        create: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
    ) -> None:
        self._listener, self._siblings, self._create = listener, siblings, create
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._opening = set[asyncio.Task[object]]()
        self._timer: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self.tell()
        self._loop.add_reader(listener, self._accept)

    def tell(self) -> None:
        """Tell the other processes how many connections this one has."""
        if self._listener.fileno() >= 0:
            own = self._count() + len(self._opening)
            self._siblings.connections[self._siblings.index] = own

    def close(self) -> None:
        """Take no more, and let the other processes have all that comes; twice is no harm."""
        if self._listener.fileno() < 0:
            return
        self._stop()
        self._siblings.connections[self._siblings.index] = ABSENT
        self._listener.close()

    async def wait_closed(self) -> None:
        """Called by uvicorn."""

    def _accept(self, patient: bool = True) -> None:
        """Take what waits, as long as no other process is to have it first."""
        while True:
            if patient and self._has_more():
                self._wait(_LEAVE_S, patient=False)
                return
            patient = True
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("no connection can be taken: %s", error)
                self._wait(_PAUSE_S, patient=True)
                return
            opening = self._loop.create_task(
                self._loop.connect_accepted_socket(self._create, connection)
            )
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def _has_more(self) -> bool:
        self.tell()
        connections = self._siblings.connections
        least = min(connections)
        return connections[self._siblings.index] > least + _MORE + _MORE_SHARE * least

    def _wait(self, seconds: float, *, patient: bool) -> None:
        self._stop()
        self._timer = self._loop.call_later(seconds, self._resume, patient)

    def _resume(self, patient: bool) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._accept)
        self._accept(patient)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        else:
            self._loop.remove_reader(self._listener)
