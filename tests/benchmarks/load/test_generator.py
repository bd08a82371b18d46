"""Against small servers that do wrong what real ones do wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.load.arrivals import arrivals, poisson
from benchmarks.load.generator import BROKEN, TIMED_OUT, Plan, drive, run
from benchmarks.load.messages import post, read_index

BODY = json.dumps({"index": 7}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
REQUEST = post("/classify", b"x" * 3000, "image/png")


def read_request(connection: socket.socket) -> bool:
    """Whether a whole request came."""
    received = b""
    while len(received) < len(REQUEST):
        data = connection.recv(65536)
        if not data:
            return False
        received += data
    return True


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[Plan]:
    """A server with a thread for each connection."""

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handle(connection)

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield Plan("127.0.0.1", port, [REQUEST], read_index)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def at_once(connection: socket.socket) -> None:
    while read_request(connection):
        connection.sendall(ANSWER)


def test_all_requests_are_sent_when_due_and_read() -> None:
    times = arrivals(poisson(1.0, 1.0), 200, seed=0)
    with serving(at_once) as plan:
        found = run(replace(plan, times=times))
    np.testing.assert_array_equal(found.columns["due"], times)
    assert found.ok.all()
    assert (found.columns["answer"] == 7).all()
    assert (found.columns["sent"] >= times).all()
    assert found.columns["done"][-1] < 1.5
    # Far less than the millisecond that an event loop's timers count in, on a machine that is free.
    assert found.lag_ms[0] < 5


def test_generator_runs_in_a_process_of_its_own() -> None:
    with serving(at_once) as plan:
        before = time.perf_counter()
        found = drive(replace(plan, times=np.array([0.0, 0.1])))
    assert found.ok.all()
    assert found.processor_s > 0
    assert before < found.start < time.perf_counter()


def test_a_server_that_stalls_makes_all_late_that_were_due_meanwhile() -> None:
    stall_s, first = 0.5, threading.Event()

    def stall_once(connection: socket.socket) -> None:
        while read_request(connection):
            if not first.is_set():
                first.set()
                time.sleep(stall_s)
            connection.sendall(ANSWER)

    times = np.arange(100) / 100
    with serving(stall_once) as plan:
        found = run(replace(plan, times=times, connections=1))
    assert found.ok.all()
    # With the one connection busy, nothing else was sent: from its own start, one request is late.
    slow = found.columns["done"] - found.columns["sent"] > stall_s / 2
    assert slow.sum() == 1
    # But half of the stall or more was waited by all that were due in its first half.
    late = found.latency_ms > 1e3 * stall_s / 2
    assert late.sum() >= 24
    assert np.flatnonzero(late).max() < 60


def test_a_server_that_stalls_is_sent_the_next_requests_all_the_same() -> None:
    arrived: list[float] = []

    def stall(connection: socket.socket) -> None:
        while read_request(connection):
            arrived.append(time.perf_counter())
            time.sleep(0.6)
            connection.sendall(ANSWER)

    with serving(stall) as plan:
        run(replace(plan, times=np.arange(10) / 100))
    assert arrived[-1] - arrived[0] < 0.5


def test_saturation_keeps_connections_busy() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slowly(connection: socket.socket) -> None:
        while read_request(connection):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.02)
            with lock:
                now[0] -= 1
            connection.sendall(ANSWER)

    with serving(slowly) as plan:
        found = run(replace(plan, seconds=0.5, connections=4))
    assert most[0] == 4
    assert found.ok.all()
    assert 40 <= len(found) <= 4 * 0.5 / 0.02 + 4


@pytest.mark.parametrize(("header", "connections"), [(b"", 1), (b"Connection: close\r\n", 5)])
def test_a_connection_is_kept_unless_the_server_says_no(header: bytes, connections: int) -> None:
    seen: list[socket.socket] = []

    def count(connection: socket.socket) -> None:
        seen.append(connection)
        while read_request(connection):
            connection.sendall(ANSWER.replace(b"Content-Length", header + b"Content-Length"))

    with serving(count) as plan:
        found = run(replace(plan, times=np.arange(5) / 20))
    assert found.ok.all()
    assert len(seen) == connections


def test_a_kept_connection_that_is_closed_is_replaced() -> None:
    def once(connection: socket.socket) -> None:
        if read_request(connection):
            connection.sendall(ANSWER)
            # It hangs up on the next one, as servers do whose patience ends just then.
            read_request(connection)

    with serving(once) as plan:
        found = run(replace(plan, times=np.arange(20) / 100))
    assert found.ok.all()


def test_a_connection_cut_amid_the_answer_is_an_error() -> None:
    def cut(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(ANSWER[:-3])

    with serving(cut) as plan:
        found = run(replace(plan, times=np.zeros(3)))
    assert (found.columns["status"] == BROKEN).all()
    assert np.isnan(found.columns["answer"]).all()


def test_a_port_that_nobody_listens_on_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = run(Plan("127.0.0.1", port, [REQUEST], read_index, times=np.zeros(3)))
    assert (found.columns["status"] == BROKEN).all()


def test_what_takes_too_long_is_given_up() -> None:
    def never(connection: socket.socket) -> None:
        while read_request(connection):
            pass

    with serving(never) as plan:
        plan = replace(plan, times=np.arange(4) / 100, connections=2, timeout_s=0.3)
        found = run(plan)
    assert (found.columns["status"] == TIMED_OUT).all()
    assert found.columns["done"].max() < 1


def test_an_answer_that_cannot_be_read_is_not_hidden() -> None:
    with serving(at_once) as plan, pytest.raises(KeyError):
        run(replace(plan, times=np.zeros(1), read=lambda body: {"none": json.loads(body)["none"]}))


@pytest.mark.parametrize("status", [429, 504])
def test_refusals_keep_their_status(status: int) -> None:
    def refuse(connection: socket.socket) -> None:
        while read_request(connection):
            connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status)

    with serving(refuse) as plan:
        found = run(replace(plan, times=np.zeros(2)))
    assert (found.columns["status"] == status).all()
