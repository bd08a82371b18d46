"""What all requests together may hold."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from models.card import Card
from service.app import create_app
from service.settings import Settings, SettingsError, load_settings
from tests.service.support import FakeEngine, metric, png, serve, wait_until

BODY, LIMIT = 100_000, 200_000
# An image may be followed by anything.
IMAGE = png() + bytes(BODY - len(png()))


@pytest.fixture
def client(bundles: Path, card: Card) -> Iterator[httpx.Client]:
    settings = Settings(bundles=bundles, max_body_bytes=BODY, max_inflight_bytes=LIMIT)
    with serve(create_app(settings, FakeEngine(card.table(), len(card.labels)))) as client:
        yield client


def begin(client: httpx.Client, sent: int, what: str = "POST /classify") -> socket.socket:
    """A request whose body is sent in part."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)
    head = f"{what} HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY}\r\n\r\n"
    connection.sendall(head.encode() + IMAGE[:sent])
    return connection


def status(connection: socket.socket) -> int:
    with closing(HTTPResponse(connection)) as answer:
        answer.begin()
        return answer.status


def test_bodies_together_too_large_refused_until_others_are_answered(client: httpx.Client) -> None:
    with begin(client, BODY - 1) as first, begin(client, BODY - 1) as second:
        wait_until(lambda: metric(client, "rnp_inflight_bytes") == 2 * (BODY - 1))
        refusal = client.post("/classify", content=IMAGE)
        assert (refusal.status_code, refusal.json()["code"]) == (503, "too_busy")
        assert "limit of 200000" in refusal.json()["error"]
        assert refusal.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        for connection in (first, second):
            connection.sendall(IMAGE[-1:])
            assert status(connection) == 200
    assert client.post("/classify", content=IMAGE).status_code == 200
    assert metric(client, "rnp_inflight_bytes") == 0


def test_bodies_cut_off_or_refused_are_given_back(client: httpx.Client) -> None:
    begin(client, 5000).close()
    assert client.post("/classify", content=b"x" * BODY).status_code == 400
    assert client.post("/classify", content=bytes(BODY + 1)).status_code == 413
    wait_until(lambda: metric(client, "rnp_inflight_bytes") == 0)


def test_bodies_only_announced_take_no_place(client: httpx.Client) -> None:
    waiting = [begin(client, 1) for _ in range(5)]
    assert client.post("/classify", content=IMAGE).status_code == 200
    for connection in waiting:
        connection.close()


def test_bodies_inflated_or_taken_apart_count_too(client: httpx.Client) -> None:
    headers = {"content-encoding": "gzip", "inference-header-content-length": "0"}
    small = gzip.compress(png() + bytes(BODY - 1000))
    with begin(client, BODY - 1):
        wait_until(lambda: metric(client, "rnp_inflight_bytes") > 0)
        assert client.post("/v2/models/tiny/infer", content=small, headers=headers).is_success
        assert client.post("/classify", files={"file": IMAGE[:40_000]}).is_success
        with begin(client, 20_000):
            wait_until(lambda: metric(client, "rnp_inflight_bytes") > BODY)
            refusal = client.post("/v2/models/tiny/infer", content=small, headers=headers)
            assert (refusal.status_code, list(refusal.json())) == (503, ["error"])
            refusal = client.post("/classify", files={"file": IMAGE[:60_000]})
            assert refusal.json()["code"] == "too_busy"


def test_settings_body_that_could_not_be_held_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNP_MAX_INFLIGHT_BYTES", "1000000")
    with pytest.raises(SettingsError, match="RNP_MAX_INFLIGHT_BYTES 1000000 is below twice"):
        load_settings()


@pytest.mark.parametrize("what", ["POST /classify", "PUT /budget"])
def test_client_that_hangs_up_amid_its_body_is_gone(client: httpx.Client, what: str) -> None:
    begin(client, 5000, what).close()
    route = what.split()[1]
    wait_until(lambda: metric(client, "rnp_requests_total", code="499", route=route) == 1)
    assert metric(client, "rnp_rejected_total", reason="client_gone") == 1
    for mistake in ("not_an_image", "bad_parameter"):
        assert metric(client, "rnp_rejected_total", reason=mistake) == 0
