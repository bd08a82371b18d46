"""What changes one process changes all of them, seen from one whose sibling the test plays."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import httpx
import pytest
from fastapi.routing import APIRoute

from service.app import create_app
from service.everywhere import _CHANGES
from service.security.access import Role, role_of
from service.settings import Settings
from service.siblings import Siblings
from tests.service.sockets import connect, error_of, read_all
from tests.service.support import FakeEngine, metric, serve, wait_until

PUT = b"PUT /budget HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"


class Sibling(ThreadingUnixStreamServer):
    """Answers all that it is told with one status.

    Attributes:
        told: of each request method and path, its headers, and its body.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.status = 200
        self.told: list[tuple[str, dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Sibling)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.told.append((f"{self.command} {self.path}", headers, body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b'{"error": "no"}')

    do_PUT = do_POST = do_DELETE = answer

    def address_string(self) -> str:
        return "sibling"

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def sibling(short_path: Path) -> Iterator[Sibling]:
    with Sibling(short_path / "1.sock") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(
    settings: Settings, engine: FakeEngine, short_path: Path, sibling: Sibling
) -> Iterator[httpx.Client]:
    app = create_app(settings, engine, Siblings(0, 2, short_path, [0, 0]))
    with serve(app, ready=False) as client:
        wait_until(lambda: client.get("/models").status_code == 200)
        yield client


def test_change_is_told_with_its_body_and_what_says_where_its_page_is_from(
    client: httpx.Client, sibling: Sibling
) -> None:
    assert client.put("/budget", json={"budget": 0.75}).status_code == 200
    origin = {"Origin": f"http://{client.base_url.netloc.decode()}"}
    loaded = client.post("/v2/repository/models/tiny/load", json={}, headers=origin)
    assert loaded.status_code == 200
    (budget, _, body), (load, headers, _) = sibling.told
    assert (budget, json.loads(body)) == ("PUT /budget", {"budget": 0.75})
    assert load == "POST /v2/repository/models/tiny/load"
    # Of the same site is a page whose origin has the host that was asked.
    assert headers["origin"] == f"http://{headers['host']}"


def test_change_whose_path_ends_in_a_line_feed_is_told_too(
    client: httpx.Client, sibling: Sibling
) -> None:
    assert client.put("/budget%0A", json={"budget": 0.75}).status_code == 200
    assert [what for what, _, _ in sibling.told] == ["PUT /budget%0A"]


def test_change_has_one_id_in_all_processes(client: httpx.Client, sibling: Sibling) -> None:
    given = {"x-request-id": "not plain"}
    answers = [client.put("/budget", json={"budget": 0.75}, headers=one) for one in ({}, given)]
    ids = [headers["x-request-id"] for _, headers, _ in sibling.told]
    assert ids == [answer.headers["x-request-id"] for answer in answers]


def test_every_route_of_operators_that_changes_something_is_told(
    settings: Settings, engine: FakeEngine
) -> None:
    asked = {
        f"{method} {route.path.replace('{name}', 'x')}"
        for route in create_app(settings, engine).routes
        if isinstance(route, APIRoute) and route.endpoint.__name__ != "_refuse"
        for method in route.methods - {"GET"}
    }
    changes = {what for what in asked if role_of(*what.split()) is Role.OPERATOR}
    assert len(changes) == 5
    assert all(_CHANGES.fullmatch(what) for what in changes)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/budget", 422),
        ("PUT", "/models/none", 422),
        ("POST", "/budget", 405),
        ("POST", "/nope", 404),
        ("DELETE", "/nope", 404),
    ],
)
def test_what_changes_nothing_is_not_told(
    client: httpx.Client, sibling: Sibling, method: str, path: str, status: int
) -> None:
    assert client.request(method, path, json={"path": "none"}).status_code == status
    assert sibling.told == []


def test_body_that_comes_slowly_holds_up_no_other_change(client: httpx.Client) -> None:
    body = b'{"budget": 0.75}'
    with connect(client) as slow:
        slow.sendall(PUT + b"content-length: %d\r\n\r\n%s" % (len(body), body[:-1]))
        time.sleep(0.2)
        started = time.monotonic()
        assert client.put("/budget", json={"budget": 0.625}).status_code == 200
        assert time.monotonic() - started < 2
        slow.sendall(body[-1:])
        assert b'"budget":0.75' in read_all(slow)


def test_body_that_is_too_long_or_too_slow_is_refused_as_by_one_process(
    settings: Settings, engine: FakeEngine, short_path: Path, sibling: Sibling
) -> None:
    hasty = settings.model_copy(update={"body_timeout_s": 0.2})
    app = create_app(hasty, engine, Siblings(0, 2, short_path, [0, 0]))
    with serve(app, ready=False) as client:
        wait_until(lambda: client.get("/models").status_code == 200)
        with connect(client) as connection:
            connection.sendall(PUT + b"content-length: 9\r\n\r\n{")
            assert error_of(read_all(connection)) == (408, "body_too_slow")
        answer = client.put("/budget", content=bytes(100_000))
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert sibling.told == []


def test_process_that_does_not_follow_is_told_of_and_counted(
    client: httpx.Client, sibling: Sibling
) -> None:
    sibling.status = 403
    answer = client.put("/budget", json={"budget": 0.75})
    assert (answer.status_code, answer.json()["code"]) == (500, "uneven")
    assert "process 1 did not: no" in answer.json()["error"]
    assert metric(client, "rnp_rejected_total", reason="uneven") == 1


def test_removal_that_nobody_did_is_not_said_to_be_done(
    client: httpx.Client, sibling: Sibling
) -> None:
    sibling.status = 503
    answer = client.delete("/models/none").json()
    assert answer["code"] == "uneven"
    assert answer["error"].startswith("not done in all processes: process 1 did not: no")


def test_removal_of_what_only_the_others_have_is_no_refusal_in_the_log(
    client: httpx.Client, sibling: Sibling, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sibling.status = 204
    assert client.delete("/models/none").status_code == 204
    (line,) = [vars(one) for one in caplog.records if one.msg == "request"]
    assert (line["status"], "code" in line) == (204, False)
