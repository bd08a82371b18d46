"""The service's port, and who takes connections from it that several processes share."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from service.siblings import ABSENT, Siblings

logger = logging.getLogger(__name__)

# How long a connection is left to a process that has fewer: it may be busy, but not for so long.
_LEAVE_S = 0.002
# More connections than another has that are no reason to leave one to it, and a share of them.
_MORE, _MORE_SHARE = 1, 1 / 16
# `localhost` has an address in IPv6 even where the system does without.
_ABSENT_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# After an error that stays for a while, as that there are too many open files.
_PAUSE_S = 0.5


class PortError(Exception):
    """A port that cannot be had; the message names port, host and reason."""

    def __init__(self, host: str, port: int, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        super().__init__(f"port {port} of {host}: {reason}")


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on a port at every address of a host, of all if it is empty; none listens yet.

    Raises:
        PortError: it is taken, or the host has no address here.
    """
    listeners: list[socket.socket] = []
    absent: list[OSError] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        addresses = dict.fromkeys((family, address) for family, *_, address in found)
        for family, address in addresses:
            try:
                listeners.append(_bound(family, address, alone=len(addresses) == 1))
            except OSError as error:
                if error.errno not in _ABSENT_ADDRESS:
                    raise
                absent.append(error)
        if not listeners:
            raise absent[0]
    except (OSError, UnicodeError) as error:  # the second of what can be no name
        for listener in listeners:
            listener.close()
        raise PortError(host, port, error) from error
    return listeners


def _bound(family: int, address: Any, *, alone: bool) -> socket.socket:
    listener = socket.socket(family)
    try:
        if os.name == "posix":  # on Windows it would share a port that is taken
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not alone:  # the other one takes IPv4
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


class Acceptor:
    """What `asyncio.Server` is for a socket of one process.

    All processes are woken by a new connection and whoever is first takes it, which is often the
    one that just took another. Clients keep their connections, so those who share a process with
    many would wait, beside one that is idle.

    Args:
        listener: shared; it listens.
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
