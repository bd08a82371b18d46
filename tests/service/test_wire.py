"""What else than requests may come on a connection, as raw sockets against the real server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from service.wire import Timer
from tests.service.sockets import connect, error_of, read_all
from tests.service.support import FakeEngine, png, serve

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def server(settings: Settings, engine: FakeEngine) -> Iterator[httpx.Client]:
    few = settings.model_copy(update={"max_header_bytes": 4096})
    with serve(create_app(few, engine)) as client:
        yield client


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 60], ids=["at once", "body later", "in pieces"])
def test_request_that_offers_http2_is_answered_with_its_body(
    server: httpx.Client, pieces: int
) -> None:
    image = png()
    head = b"POST /classify HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (
        UPGRADE,
        len(image),
    )
    sent = head + image + GET.replace(b"host: x", b"connection: close")
    size = len(head) if pieces == 2 else -(-len(sent) // pieces)
    with connect(server) as connection:
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
            time.sleep(0.005)
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b'"predictions"' in answers
    assert b'{"status":"ok"}' in answers


def test_body_behind_an_offer_is_no_request(server: httpx.Client) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
            b"content-length: %d\r\n\r\n" % len(hidden)
        )
        time.sleep(0.05)
        connection.sendall(hidden + GET.replace(b"host: x", b"connection: close"))
        answers = read_all(connection)
    assert answers.startswith(b"HTTP/1.1 400")
    assert answers.count(b"HTTP/1.1") == 2


def test_proxy_is_refused(server: httpx.Client) -> None:
    with connect(server) as connection:
        connection.sendall(b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\nhello")
        assert error_of(read_all(connection)) == (400, "bad_http")


@pytest.mark.parametrize(
    "behind", [b"\x00garbage\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: a\r\n" * 900]
)
def test_what_is_no_http_behind_a_request_does_not_take_its_answer(
    settings: Settings, engine: FakeEngine, behind: bytes
) -> None:
    image = png()
    head = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(image)
    engine.gate.clear()
    few = settings.model_copy(update={"max_header_bytes": 4096})
    with serve(create_app(few, engine)) as server, connect(server) as connection:
        connection.sendall(head + image)
        time.sleep(0.2)
        connection.sendall(behind)
        time.sleep(0.2)
        engine.gate.set()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n" + b"x: a\r\n" * 5000 + b"\r\n", b"\x00" * 60_000],
    ids=["headers", "garbage"],
)
def test_refused_in_one_read_is_refused_once_and_heard_out(
    server: httpx.Client, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        time.sleep(0.2)
        connection.sendall(b"x" * 1000)  # would reset a connection that was closed
        status, _ = error_of(read_all(connection))
    assert status in (400, 431)
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


def test_slow_body_behind_another_request_makes_room(
    settings: Settings, engine: FakeEngine
) -> None:
    few = settings.model_copy(update={"max_connections": 2, "body_timeout_s": 60})
    slow = GET + b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\nx"
    with serve(create_app(few, engine)) as server, ExitStack() as stack:
        server.close()
        for connection in [stack.enter_context(connect(server)) for _ in range(2)]:
            connection.sendall(slow)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        with connect(server) as honest:
            honest.sendall(GET)
            assert honest.recv(100).startswith(b"HTTP/1.1 200")


HEADER_S, KEEP_S = 0.5, 1
# What a busy machine may add to any time.
SLACK_S = 2


@pytest.fixture
def hasty(settings: Settings, engine: FakeEngine) -> Iterator[httpx.Client]:
    times = {"header_timeout_s": HEADER_S, "keep_alive_s": KEEP_S}
    with serve(create_app(settings.model_copy(update=times), engine)) as client:
        yield client


def refused_before_its_body(hasty: httpx.Client) -> socket.socket:
    """A connection that is idle after a body that nobody wanted."""
    connection = connect(hasty)
    connection.sendall(b"PUT /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 404")
    for part in (1, 98):
        connection.sendall(bytes(part))
        time.sleep(0.1)
    return connection


def test_connection_idle_after_a_refused_body_is_closed_after_its_time(
    hasty: httpx.Client,
) -> None:
    with refused_before_its_body(hasty) as idle:
        started = time.monotonic()
        assert read_all(idle) == b""
        assert KEEP_S - 0.2 < time.monotonic() - started < KEEP_S + SLACK_S


@pytest.mark.parametrize("wait_s", [0, HEADER_S - 0.3])
def test_headers_after_a_refused_body_have_their_own_time(
    hasty: httpx.Client, wait_s: float
) -> None:
    with refused_before_its_body(hasty) as connection:
        time.sleep(wait_s)
        connection.sendall(GET[:20])
        time.sleep(HEADER_S - 0.2)
        connection.sendall(GET[20:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_head_that_begins_with_the_end_of_a_refused_body_is_cut_in_time(
    hasty: httpx.Client,
) -> None:
    with refused_before_its_body(hasty) as slow:
        slow.sendall(b"PUT /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 404")
        slow.sendall(bytes(9) + GET[:20])
        started = time.monotonic()
        assert error_of(read_all(slow)) == (408, "headers_too_slow")
        assert HEADER_S - 0.05 < time.monotonic() - started < HEADER_S + SLACK_S


def test_timer_does_it_once_unless_it_is_stopped() -> None:
    async def times(*steps: str) -> tuple[list[str], bool]:
        done: list[str] = []
        timer = Timer(asyncio.get_running_loop())
        for step in steps:
            if step == "stop":
                timer.stop()
            else:
                timer.start(0.01, lambda step=step: done.append(step))
        assert timer.runs == (steps[-1] != "stop")
        await asyncio.sleep(0.1)
        return done, timer.runs

    assert asyncio.run(times("a")) == (["a"], False)
    assert asyncio.run(times("a", "b")) == (["b"], False)
    assert asyncio.run(times("a", "stop")) == ([], False)
