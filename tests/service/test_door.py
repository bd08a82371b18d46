"""Refusals at the door, against the server as it is run: what a full queue answers, and how."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

from service import door
from service.app import create_app
from service.settings import Settings
from tests.service.sockets import connect, read_all
from tests.service.support import FakeEngine, client_of, metric, png, serve, wait_until

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture
def full(settings: Settings, engine: FakeEngine) -> Iterator[httpx.Client]:
    """A server whose queue is full while the test runs."""
    with serve(create_app(settings, engine)) as client, filled(client, engine, settings):
        yield client


@contextmanager
def filled(client: httpx.Client, engine: FakeEngine, settings: Settings) -> Iterator[None]:
    """The queue is full until the context is left; all that waited are answered then."""
    places, image = settings.max_queue, png()
    engine.gate.clear()
    engine.started.clear()
    with ThreadPoolExecutor(places + 1) as pool:
        waiting = [pool.submit(client.post, "/classify", content=image)]
        assert engine.started.wait(10)
        waiting += [pool.submit(client.post, "/classify", content=image) for _ in range(places)]
        wait_until(lambda: f"rnp_queue_depth {places}.0" in client.get("/metrics").text)
        yield
        engine.gate.set()
        assert {each.result(10).status_code for each in waiting} == {200}


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and body of the next answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, body = received.split(b"\r\n\r\n", 1)
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(status.split()[1]), headers, json.loads(body)


def test_full_queue_refuses_at_the_head_and_the_connection_goes_on(full: httpx.Client) -> None:
    with connect(full) as caller:
        for size in (10, 200_000):
            # Told before the body is there, which is dropped when it comes.
            request = post("/classify?budget=0.4", bytes(size), "x-request-id: mine")
            caller.sendall(request[:-size])
            status, headers, told = answer_of(caller)
            assert (status, told["code"]) == (429, "queue_full")
            assert told["error"].startswith("4 images are waiting and 1 more would pass the limit")
            assert (headers["retry-after"], headers["x-request-id"]) == ("1", "mine")
            caller.sendall(request[-size:])
        caller.sendall(GET)
        assert read_all(caller).startswith(b"HTTP/1.1 200 OK")


def test_each_of_several_requests_at_once_is_refused(full: httpx.Client) -> None:
    with connect(full) as caller:
        caller.sendall(post("/classify", b"x") * 3 + GET)
        assert read_all(caller).count(b"queue_full") == 3


def test_refusals_are_counted_as_by_the_app_and_told_in_one_line(
    full: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "_LOGGED_S", 0.2)
    caplog.set_level("INFO")
    for _ in range(5):
        assert full.post("/classify", content=png()).status_code == 429
    assert metric(full, "rnp_requests_total", code="429", route="/classify") == 5
    assert metric(full, "rnp_rejected_total", reason="queue_full") == 5

    def lines() -> list[int]:
        return [r.requests for r in caplog.records if r.message == "refused at the door"]  # type: ignore[attr-defined]

    wait_until(lambda: sum(lines()) == 5, 2)
    assert len(lines()) < 5
    assert not [r for r in caplog.records if getattr(r, "status", None) == 429]


def test_refusal_has_the_headers_of_those_of_the_app(full: httpx.Client) -> None:
    at_door = full.post("/classify", content=png())
    in_app = full.post("/classify?model=tiny", content=png())
    assert at_door.headers.keys() == in_app.headers.keys()
    for name in at_door.headers.keys() - {"date", "x-request-id"}:
        assert at_door.headers[name] == in_app.headers[name]


def test_one_that_sends_and_does_not_read_is_not_answered_without_end(full: httpx.Client) -> None:
    requests = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" * 100
    with connect(full) as caller:
        caller.settimeout(1)
        with suppress(TimeoutError):  # when nobody reads it any more
            for _ in range(10_000):
                caller.sendall(requests)

        def refused() -> float:
            with client_of(full.base_url) as fresh:  # the other one may have been idle for too long
                return metric(fresh, "rnp_rejected_total", reason="queue_full")

        def stands_still() -> bool:
            before = refused()
            time.sleep(0.3)
            return refused() == before

        wait_until(stands_still)
        assert 0 < refused() < 1_000_000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/classify?model=tiny", 429),
        ("/classify?%6dodel=other", 422),
        ("/classify?model=other", 422),
        ("/classified", 404),
        ("/v2/models/tiny/infer", 400),
    ],
)
def test_what_may_be_for_another_model_is_left_to_the_app(
    full: httpx.Client, path: str, status: int
) -> None:
    answer = full.post(path, content=png())
    assert answer.status_code == status
    assert "content-security-policy" in answer.headers  # as all that the app answers has


def test_one_that_asks_for_no_more_is_refused_and_closed(full: httpx.Client) -> None:
    with connect(full) as caller:
        caller.sendall(post("/classify", png(), "connection: close"))
        assert b"queue_full" in read_all(caller)


def test_pages_of_other_sites_get_their_headers(settings: Settings, engine: FakeEngine) -> None:
    site = "https://pictures.example"
    with (
        serve(create_app(settings.model_copy(update={"cors_origins": (site,)}), engine)) as client,
        filled(client, engine, settings),
    ):
        refused = client.post("/classify", content=png(), headers={"Origin": site})
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == site


def test_door_is_open_again_when_there_is_a_place(settings: Settings, engine: FakeEngine) -> None:
    with serve(create_app(settings, engine)) as client:
        with filled(client, engine, settings):
            assert client.post("/classify", content=png()).status_code == 429
        assert client.post("/classify", content=png()).status_code == 200
