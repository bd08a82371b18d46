"""Sends requests at the times of a plan, whatever the server does meanwhile, and notes the answers.

One thread, one selector, keep-alive connections; no event loop, whose timers count whole
milliseconds. It runs in a process of its own, see `drive`.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import select
import selectors
import signal
import socket
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httptools
import numpy as np

from benchmarks.load.arrivals import Floats
from benchmarks.load.messages import Reader
from benchmarks.load.outcome import COLUMNS, OK, Outcome

# Statuses of requests that got no whole answer.
BROKEN, TIMED_OUT = 0, -1
# How often what takes too long is looked for.
TICK_S = 0.1
PRIORITY = -10


@dataclass(frozen=True)
class Plan:
    """What to send to whom.

    Attributes:
        requests: whole HTTP requests, head and body; they are sent in turn.
        times: seconds after the start at which they are due; absent, `connections` are kept busy.
        seconds: how long, where there are no times.
        connections: the most at once; requests beyond wait here, and that counts as latency.
        timeout_s: after which a request is given up, from when it was due.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    read: Reader
    times: Floats | None = None
    seconds: float = 0.0
    connections: int = 900
    timeout_s: float = 10.0


@contextmanager
def driving(plan: Plan) -> Iterator[Future[Outcome]]:
    """Run a plan in a process of its own, beside what is done in the context."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        generator = pool.submit(_ready).result()
        try:
            yield pool.submit(run, plan)
        except BaseException:
            # The pool would wait for the end of the plan.
            os.kill(generator, signal.SIGKILL)
            raise


def drive(plan: Plan) -> Outcome:
    """Run a plan in a process of its own, and wait for it."""
    with driving(plan) as outcome:
        return outcome.result()


def _ready() -> int:
    """All is imported; the process id. Goes before others if it may, or it times its waiting."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    # Nothing here needs it, and the longer a run, the longer it would stop all.
    gc.disable()
    return os.getpid()


def run(plan: Plan) -> Outcome:
    """Run a plan in this process."""
    processor = time.process_time()
    generator = _Generator(plan)
    generator.run()
    processor = time.process_time() - processor
    generator.read()
    columns = {name: np.array(values) for name, values in generator.columns.items()}
    return Outcome(columns, generator.start, processor)


_UNREACHABLE = b"deadline_unreachable"


class _Generator:
    """A plan while it runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.start = time.perf_counter()
        self.columns = {name: array("d") for name in COLUMNS}
        self.answers: dict[int, bytes] = {}
        self.waiting: deque[int] = deque()
        # The one that is free longest sends next, as if each were another caller's: the one that
        # was free last would send most requests to one process of a server that has several.
        self.idle: deque[_Connection] = deque()
        self.busy: dict[int, _Connection] = {}

    def run(self) -> None:
        """Until the last request is answered or given up."""
        times = deque(() if self.plan.times is None else self.plan.times.tolist())
        if self.plan.times is None:
            for _ in range(self.plan.connections):
                self._due(self.now())
        try:
            while times or self.busy or self.waiting:
                while times and times[0] <= self.now():
                    self._due(times.popleft())
                self._receive(min(times[0] - self.now(), TICK_S) if times else TICK_S)
                self._give_up()
        finally:
            for key in list(self.selector.get_map().values()):
                key.data.close()
            self.selector.close()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def _due(self, due: float) -> None:
        index = len(self.columns["due"])
        for values in self.columns.values():
            values.append(math.nan)
        self._set(index, due=due, image=index % len(self.plan.requests))
        self._send(index)

    def _set(self, index: int, **values: float) -> None:
        for name, value in values.items():
            self.columns[name][index] = value

    def _send(self, index: int) -> None:
        if not self.idle and len(self.busy) >= self.plan.connections:
            self._set(index, waited=1)
            self.waiting.append(index)
            return
        reused = bool(self.idle)
        connection = self.idle.popleft() if reused else _Connection(self)
        self.busy[index] = connection
        self._set(index, sent=self.now())
        connection.send(index, self.plan.requests[index % len(self.plan.requests)], reused)

    def _receive(self, timeout: float) -> None:
        # A selector counts whole milliseconds; select on the selector itself does not.
        select.select([self.selector], [], [], max(timeout, 0))
        for key, mask in self.selector.select(0):
            key.data.ready(mask)

    def _give_up(self) -> None:
        """Requests are sent in the order in which they were due, so the first has waited most."""
        due, limit = self.columns["due"], self.now() - self.plan.timeout_s
        while self.waiting and due[self.waiting[0]] < limit:
            self._note(self.waiting.popleft(), TIMED_OUT, b"")
        while self.busy and due[first := next(iter(self.busy))] < limit:
            self.busy[first].close()
            self.done(first, TIMED_OUT, b"", None)

    def done(self, index: int, status: int, body: bytes, free: _Connection | None) -> None:
        """A request has its answer, or none will come; `free` is a connection that may go on."""
        self.busy.pop(index)
        self._note(index, status, body)
        if free:
            self.idle.append(free)
        if self.waiting:
            self._send(self.waiting.popleft())
        elif self.plan.times is None and (now := self.now()) < self.plan.seconds:
            self._due(now)

    def again(self, index: int) -> None:
        """A kept connection was closed under a request: as any client does, try a new one."""
        self.busy.pop(index)
        for connection in self.idle:
            connection.close()
        self.idle.clear()
        self._send(index)

    def _note(self, index: int, status: int, body: bytes) -> None:
        self._set(index, status=status, done=self.now(), unreachable=_UNREACHABLE in body)
        if status == OK:
            self.answers[index] = body

    def read(self) -> None:
        """See what the answers say: afterwards, as it takes as long as a quarter of the rest."""
        for index, body in self.answers.items():
            self._set(index, **self.plan.read(body))


class _Connection:
    """One request at a time over a socket."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect_ex((generator.plan.host, generator.plan.port))
        self._index: int | None = None
        self._outgoing = memoryview(b"")
        generator.selector.register(self._socket, selectors.EVENT_READ, self)

    def send(self, index: int, request: bytes, reused: bool) -> None:
        """Send a request; one over a new connection waits until it is made."""
        self._index, self._reused = index, reused
        self._outgoing, self._body, self._any = memoryview(request), bytearray(), False
        self._whole = False
        self._parser = httptools.HttpResponseParser(self)
        if reused:
            self._write()
        else:
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)

    def ready(self, mask: int) -> None:
        """The socket can be read or written."""
        if mask & selectors.EVENT_WRITE and self._outgoing:
            self._write()
        if mask & selectors.EVENT_READ and self._socket.fileno() >= 0:
            self._read()

    def close(self) -> None:
        """Hang up."""
        if self._socket.fileno() >= 0:
            self._generator.selector.unregister(self._socket)
            self._socket.close()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken()
            return
        self._outgoing = self._outgoing[sent:]
        self._watch(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0))

    def _watch(self, events: int) -> None:
        if self._generator.selector.get_key(self._socket).events != events:
            self._generator.selector.modify(self._socket, events, self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or self._index is None:
            self._broken()
            return
        self._any = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._broken()
            return
        if self._whole:
            self._complete()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by the parser, which hides what is raised here."""
        self._whole = True
        # Afterwards it has forgotten.
        self._keep = self._parser.should_keep_alive()

    def _complete(self) -> None:
        index, self._index = self._index, None
        assert index is not None
        keep = self._keep and not self._outgoing
        if not keep:
            self.close()
        status = self._parser.get_status_code()
        self._generator.done(index, status, bytes(self._body), self if keep else None)

    def _broken(self) -> None:
        index, self._index = self._index, None
        self.close()
        if index is None:
            if self in self._generator.idle:
                self._generator.idle.remove(self)
        elif self._reused and not self._any:
            self._generator.again(index)
        else:
            self._generator.done(index, BROKEN, b"", None)
