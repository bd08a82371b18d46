"""What the processes of one service tell each other, over sockets in a directory of theirs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable, MutableSequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from starlette.types import Scope

Headers = Iterable[tuple[str, str]]

# Loading a bundle takes seconds; whoever does not answer at all is found dead by the parent.
_TIMEOUT_S = 120
_LOCK_POLL_S = 0.02
# Connections of a process that takes none.
ABSENT = 2**31
# What belongs to one connection, or is made anew for the other one.
_HOP = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Reply:
    """What a sibling said; status 0 if it could not be asked, and then the body says why."""

    sibling: int
    status: int
    body: bytes

    def said(self, field: str) -> str:
        """A field of the JSON that it said, or all of it if it has none."""
        text = self.body.decode(errors="replace")
        try:
            return str(json.loads(text)[field])
        except (ValueError, LookupError, TypeError):
            return text


@dataclass(frozen=True)
class Siblings:
    """The other processes of this service, seen from one.

    Attributes:
        index: of this one.
        count: of all, this one included.
        directory: theirs alone.
        connections: how many each has, in memory that they share; each writes its own.
    """

    index: int
    count: int
    directory: Path
    connections: MutableSequence[int]

    def listen(self) -> socket.socket:
        """The socket on which the others can ask this one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path(self.index)))
        return listener

    def tell(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes = b"",
        timeout_s: float = _TIMEOUT_S,
    ) -> list[Reply]:
        """Send a request to each of the others at once, and wait for all of them; blocks.

        A process must not do so in more threads than it can spare, or all wait for each other.
        """
        headers = [(name, value) for name, value in headers if name.lower() not in _HOP]
        others = [index for index in range(self.count) if index != self.index]
        with ThreadPoolExecutor(len(others), "siblings") as pool:
            replies = pool.map(
                lambda index: self._ask(index, method, target, headers, body, timeout_s), others
            )
            return list(replies)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While it lasts, no other process changes anything: all see changes in one order."""
        import fcntl  # of Unix, as is a service of several processes

        with (self.directory / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_POLL_S)
            yield  # closing the file gives the lock back

    def _ask(
        self,
        index: int,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        timeout_s: float,
    ) -> Reply:
        connection = _Connection(self._path(index), timeout_s)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            return Reply(index, response.status, response.read())
        except (OSError, HTTPException) as error:
            return Reply(index, 0, str(error).encode())
        finally:
            connection.close()

    def _path(self, index: int) -> Path:
        return self.directory / f"{index}.sock"


def from_sibling(scope: Scope) -> bool:
    """Whether a request came from another process: what it asks is asked of all already."""
    return is_own_socket(scope.get("server"))


def is_own_socket(server: tuple[str, int | None] | None) -> bool:
    """Whether what a connection came to is the socket of `listen`, which has no port."""
    return server is not None and server[1] is None


class _Connection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
