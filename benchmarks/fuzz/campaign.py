"""Sends malformed requests and judges the answers: no crash, no hang, a refusal that says why."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

import numpy as np

from benchmarks.fuzz.files import image_files
from benchmarks.fuzz.shots import Shot, post
from benchmarks.load.server import Server

# An answer takes this long at most, with some hundred times its usual time to spare.
MOST_SECONDS = 10.0
# Resident memory may still rise by so much in the second half: allocators return little.
MOST_GROWTH_BYTES = 32 * 2**20
_SAMPLE_S = 0.2
# A deadline that cannot be kept: a refusal like those of 4xx.
_LATE = 504
# Said of bytes that a target or a header cannot hold, before it is known what they ask for.
_NO_HTTP = "bad_http"


@dataclass(frozen=True)
class Reply:
    """What came back; status 0 if nothing did."""

    status: int
    body: bytes
    seconds: float


@dataclass
class Outcome:
    """What became of all requests.

    Attributes:
        statuses: how often each, by kind; 0 for none.
        failures: (number, what is wrong).
        slowest: (seconds, number).
        memory: resident bytes, in the order of time.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    memory: list[int] = field(default_factory=list)

    @property
    def growth_bytes(self) -> int:
        """Rise of resident memory from the middle to the end, each the median of a tenth."""
        tenth, middle = len(self.memory) // 10, len(self.memory) // 2
        if not tenth:
            return 0
        begin, end = self.memory[middle : middle + tenth], self.memory[-tenth:]
        return int(np.median(end) - np.median(begin))


def send(connection: socket.socket, shot: Shot) -> tuple[Reply, bool]:
    """Send a request and read its answer; also whether the connection can be used again."""
    started = time.perf_counter()
    status, body, again = 0, b"", False
    try:
        try:
            connection.sendall(shot.wire)
            if not shot.framed:
                connection.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # it may have answered before it read all
        with closing(HTTPResponse(connection)) as answer:
            answer.begin()
            status, body, again = answer.status, answer.read(), not answer.will_close
    except (ConnectionError, HTTPException):
        pass
    return Reply(status, body, time.perf_counter() - started), again and shot.framed


def fault(shot: Shot, reply: Reply) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if reply.seconds > MOST_SECONDS:
        return f"took {reply.seconds:.1f} s"
    if reply.status >= 500 and reply.status != _LATE:
        return f"status {reply.status}: {reply.body[:200]!r}"
    if not shot.framed:
        return None
    if not reply.status:
        return "no answer"
    if reply.status >= 400:
        try:
            found = json.loads(reply.body)
            if not found["error"] or len(found["error"]) > 1000:
                return f"a refusal of {len(found['error'])} characters"
            if found.get("code") == _NO_HTTP:
                return None
            if set(found) != ({"error"} if b"/v2/" in shot.head[:12] else {"error", "code"}):
                return f"a refusal with {sorted(found)}"
        except (ValueError, KeyError, TypeError):
            return f"status {reply.status} without a reason: {reply.body[:200]!r}"
    return None


class Sender:
    """One connection, opened anew where the service closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: socket.socket | None = None

    def __call__(self, shot: Shot) -> Reply:
        """Send a request; once more if an idle connection had been closed meanwhile."""
        used = self._open is not None and shot.framed
        reply = self._send(shot)
        return self._send(shot) if used and not reply.status else reply

    def _send(self, shot: Shot) -> Reply:
        connection = self._open if shot.framed else None
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.settimeout(3 * MOST_SECONDS)
        try:
            reply, again = send(connection, shot)
        except TimeoutError:
            reply, again = Reply(0, b"", 3 * MOST_SECONDS), False
        if not again:
            connection.close()
        if shot.framed:
            self._open = connection if again else None
        return reply

    def close(self) -> None:
        """Close the connection."""
        if self._open:
            self._open.close()


def send_alone(server: Server, shot: Shot) -> Reply:
    """Send a request over a connection of its own."""
    with closing(Sender(server.port)) as sender:
        return sender(shot)


def attack(
    server: Server, numbers: Iterable[int], make: Callable[[int], Shot], senders: int = 1
) -> Outcome:
    """Send the requests of these numbers, over several connections at once."""
    outcome, lock, left = Outcome(), threading.Lock(), iter(numbers)

    def work() -> None:
        with closing(Sender(server.port)) as sender:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                shot = make(number)
                reply = sender(shot)
                with lock:
                    _record(outcome, number, shot, reply)

    with ThreadPoolExecutor(senders) as pool:
        running = [pool.submit(work) for _ in range(senders)]
        while wait(running, _SAMPLE_S).not_done:
            outcome.memory.append(server.memory_bytes())
        for one in running:
            one.result()
    return outcome


def _record(outcome: Outcome, number: int, shot: Shot, reply: Reply) -> None:
    outcome.statuses[shot.kind, reply.status] += 1
    outcome.slowest = max(outcome.slowest, (reply.seconds, number))
    wrong = fault(shot, reply)
    if wrong:
        outcome.failures.append((number, f"{shot.kind}: {wrong}"))


def aftermath(server: Server) -> list[str]:
    """What is wrong with the service after the attack: all it held must be given back."""
    wrong = []
    reply = send_alone(server, post("image", "/classify", image_files()["png"]))
    if reply.status != 200:
        wrong.append(f"a plain image gets {reply.status}: {reply.body[:200]!r}")
    for name in ("rnp_inflight_bytes", "rnp_queue_depth", "rnp_decode_queue_depth"):
        if value := server.metric(name):
            wrong.append(f"{name} is {value:g} with nothing in flight")
    if broken := server.metric("rnp_rejected_total", 'reason="internal_error"'):
        wrong.append(f"{broken:g} internal errors")
    return wrong
