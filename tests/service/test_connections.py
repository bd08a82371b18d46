"""Slow and hostile clients, as raw sockets against the server as it is run."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from service import connections
from service.app import create_app
from service.settings import Settings
from tests.service.sockets import connect, drip, error_of, read_all
from tests.service.support import FakeEngine, client_of, png, serve, wait_until

HEADER_S, BODY_S, SEND_S, MOST = 0.5, 0.6, 0.7, 8
# What a busy machine may add to any time.
SLACK_S = 2
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def server(settings: Settings, engine: FakeEngine) -> Iterator[httpx.Client]:
    update = {
        "header_timeout_s": HEADER_S,
        "body_timeout_s": BODY_S,
        "body_bytes_per_s": 1000,
        "send_timeout_s": SEND_S,
        "max_connections": MOST,
        "max_header_bytes": 4096,
        "keep_alive_s": 1,
    }
    with serve(create_app(settings.model_copy(update=update), engine)) as client:
        yield client


@contextmanager
def good_requests(server: httpx.Client) -> Iterator[list[float]]:
    """Ask all the time, each on a connection of its own; gives the seconds until each was answered.

    A connection that had to make room before its request was read is opened anew, as clients do:
    it ends in order, or by a reset if the request lay unread. So is one that found all places busy.
    """
    times: list[float] = []
    stop = threading.Event()
    made_room = httpx.RemoteProtocolError, httpx.NetworkError

    def ask() -> None:
        while not stop.is_set():
            started, answered = time.monotonic(), False
            while not answered:
                with client_of(server.base_url) as client, suppress(*made_room):
                    response = client.post("/classify", content=png())
                    answered = response.status_code == 200
                    assert answered or response.json()["code"] == "too_many_connections"
            times.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()


def test_slow_headers_are_cut_in_time_while_good_requests_are_answered(
    server: httpx.Client,
) -> None:
    with good_requests(server) as times, connect(server) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\nx-a: ")
        seconds = drip(slow)
        answer = read_all(slow)
    assert HEADER_S - 0.05 < seconds < HEADER_S + SLACK_S
    assert error_of(answer) == (408, "headers_too_slow")
    assert len(times) > 3
    assert max(times) < SLACK_S
    assert 'rnp_rejected_total{reason="headers_too_slow"} 1.0' in server.get("/metrics").text


def test_silent_connection_is_closed_without_a_word(server: httpx.Client) -> None:
    with connect(server) as silent:
        started = time.monotonic()
        assert read_all(silent) == b""
        assert HEADER_S - 0.05 < time.monotonic() - started < HEADER_S + SLACK_S


@pytest.mark.parametrize("after", [b"\r\n", b"GET / HT", b"G"])
def test_slow_next_request_of_an_open_connection_is_cut(server: httpx.Client, after: bytes) -> None:
    with connect(server) as slow:
        slow.sendall(GET)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        slow.sendall(after)
        started = time.monotonic()
        answer = read_all(slow)
        assert HEADER_S - 0.05 < time.monotonic() - started < HEADER_S + SLACK_S
    assert answer == b"" if after == b"\r\n" else error_of(answer) == (408, "headers_too_slow")


def test_idle_connection_is_closed_after_its_time(server: httpx.Client) -> None:
    with connect(server) as idle:
        idle.sendall(GET)
        started = time.monotonic()
        assert b"200 OK" in read_all(idle)
        assert 0.9 < time.monotonic() - started < 1 + SLACK_S


@pytest.mark.parametrize(
    "head",
    [
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n",
        b"PUT /budget HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 60000\r\n\r\n",
    ],
)
def test_slow_body_is_cut_in_time_while_good_requests_are_answered(
    server: httpx.Client, head: bytes
) -> None:
    with good_requests(server) as times, connect(server) as slow:
        slow.sendall(head)
        seconds = drip(slow)
        answer = read_all(slow)
    assert BODY_S - 0.05 < seconds < BODY_S + SLACK_S
    assert error_of(answer) == (408, "body_too_slow")
    assert max(times) < SLACK_S
    assert 'rnp_rejected_total{reason="body_too_slow"} 1.0' in server.get("/metrics").text


LARGE_HEADERS = b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"x" * 5000
NO_CHUNK = b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"


@pytest.mark.parametrize(("request_", "status"), [(LARGE_HEADERS, 431), (NO_CHUNK, 400)])
def test_refused_client_may_go_on_sending_for_a_while(
    server: httpx.Client, request_: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_LINGER_S", 0.5)
    with connect(server) as eager:
        eager.sendall(request_)
        for _ in range(5):
            time.sleep(0.05)
            eager.sendall(bytes(100_000))
        assert error_of(read_all(eager))[0] == status
        wait_until(lambda: is_dead(eager), 1 + SLACK_S)


def test_few_connections_linger_and_they_take_no_places(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_MOST_LINGERING", 2)
    with ExitStack() as stack:
        refused = []
        for _ in range(2 * MOST):
            refused.append(stack.enter_context(connect(server)))
            refused[-1].sendall(LARGE_HEADERS)
            assert error_of(read_all(refused[-1]))[0] == 431
        wait_until(lambda: all(is_dead(one) for one in refused[:-2]), 2)
        assert not any(is_dead(one) for one in refused[-2:])
        time.sleep(0.1)
        assert not any(is_dead(one) for one in refused[-2:])
        open_ = [stack.enter_context(connect(server)) for _ in range(MOST)]
        for one in open_:
            one.sendall(GET)
        assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in open_)


def test_silent_body_is_cut_in_time(server: httpx.Client) -> None:
    with connect(server) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        started = time.monotonic()
        assert error_of(read_all(slow)) == (408, "body_too_slow")
        assert BODY_S - 0.05 < time.monotonic() - started < BODY_S + SLACK_S


def test_body_above_the_rate_takes_longer_than_the_timeout(server: httpx.Client) -> None:
    image = png() + bytes(4000)  # what follows an image is not read
    step = 200
    with connect(server) as steady:
        head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(image)}\r\n\r\n"
        steady.sendall(head.encode())
        started = time.monotonic()
        for begin in range(0, len(image), step):
            steady.sendall(image[begin : begin + step])
            time.sleep(0.1)  # 2000 bytes a second
        assert steady.recv(100).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - started > 2 * BODY_S


def test_time_spent_by_the_service_is_not_the_clients(
    server: httpx.Client, engine: FakeEngine
) -> None:
    engine.gate.clear()
    timer = threading.Timer(2 * BODY_S, engine.gate.set)
    timer.start()
    assert server.post("/classify", content=png()).status_code == 200
    timer.join()


def test_body_of_settings_that_never_ends_is_refused(server: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * 30_000

    json_type = {"content-type": "application/json"}
    response = server.put("/budget", content=endless(), headers=json_type)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "the limit is 65536" in response.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        b"x: " + b"a" * 5000 + b"\r\n\r\n",
        b"x: " + b"a" * 5000,
        b"x" * 5000,
        b"x: a\r\n" * 1000 + b"\r\n",
    ],
    ids=["long", "long and unfinished", "no end of a name", "many"],
)
def test_large_headers_are_refused(server: httpx.Client, headers: bytes) -> None:
    with connect(server) as large:
        large.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + headers)
        assert error_of(read_all(large)) == (431, "headers_too_large")
    assert server.get("/healthz").is_success


def test_large_trailers_are_refused(server: httpx.Client) -> None:
    with connect(server) as large:
        large.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        large.sendall(b"1\r\nx\r\n0\r\n")
        seconds = drip(large, b"x: aaaaaaa\r\n" * 100, every_s=0.01)
        assert error_of(read_all(large)) == (431, "headers_too_large")
        assert seconds < BODY_S + SLACK_S


def test_headers_just_below_the_limit_pass(server: httpx.Client) -> None:
    assert server.get("/healthz", headers={"x": "a" * 3500}).is_success


def test_no_http_is_refused(server: httpx.Client) -> None:
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert error_of(read_all(connection)) == (400, "bad_http")


def test_refusal_under_v2_has_the_protocols_form(server: httpx.Client) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2/models HTTP/1.1\r\nx: " + b"a" * 5000)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert set(json.loads(answer.split(b"\r\n\r\n")[1])) == {"error"}


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HTTP/1.1\r\nx: ", b"POST /classify HTTP/1.1\r\ncontent-length: 99\r\n\r\nx", GET],
    ids=["silent", "in headers", "in the body", "idle"],
)
def test_crowd_of_slow_clients_is_held_small_and_locks_nobody_out(
    settings: Settings, engine: FakeEngine, begun: bytes
) -> None:
    times_s = {"header_timeout_s": 60, "body_timeout_s": 60, "keep_alive_s": 60}
    patient = settings.model_copy(update={"max_connections": MOST, **times_s})
    with (
        serve(create_app(patient, engine)) as server,
        ExitStack() as stack,
        good_requests(server) as times,
    ):
        crowd = [stack.enter_context(connect(server)) for _ in range(5 * MOST)]
        for slow in crowd:
            with suppress(ConnectionError):  # it had to make room already
                slow.sendall(begun)
        seen = len(times)
        wait_until(lambda: sum(not is_closed(slow) for slow in crowd) < MOST, 5)
        wait_until(lambda: len(times) > seen + 3, 5)
    assert max(times) < SLACK_S
    assert sum(engine.batches) == len(times)  # what was read was answered


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_too_many_busy_connections_refuse_one_more(settings: Settings, engine: FakeEngine) -> None:
    few = settings.model_copy(update={"max_connections": 3, "max_queue": 9})
    engine.gate.clear()
    image = png()
    head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(image)}\r\n\r\n"
    with serve(create_app(few, engine)) as server:
        server.close()  # its own connection
        with ExitStack() as stack:
            busy = [stack.enter_context(connect(server)) for _ in range(3)]
            for connection in busy:
                connection.sendall(head.encode() + image)
            time.sleep(0.3)
            with connect(server) as more:
                answer = read_all(more)
            assert error_of(answer) == (503, "too_many_connections")
            assert b"\r\nretry-after: 1\r\n" in answer
            engine.gate.set()
            assert all(c.recv(100).startswith(b"HTTP/1.1 200") for c in busy)
            # Idle now, one of them makes room.
            with connect(server) as again:
                again.sendall(GET)
                assert again.recv(100).startswith(b"HTTP/1.1 200")


def test_client_that_takes_no_answers_is_cut(
    server: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as greedy:
        greedy.sendall(b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
        time.sleep(SEND_S + 0.3)
        wait_until(lambda: is_dead(greedy), 1)
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


def is_dead(connection: socket.socket) -> bool:
    """Whether nobody is there any more to take what is sent."""
    try:
        connection.sendall(b"x")
    except ConnectionError:
        return True
    return False


def test_many_requests_at_once_on_one_connection_are_answered(server: httpx.Client) -> None:
    with connect(server) as connection:
        connection.sendall(GET * 50)
        answers = b""
        while answers.count(b'{"status":"ok"}') < 50:
            answers += connection.recv(65536)
    assert answers.count(b"HTTP/1.1 200 OK") == 50
