"""One of two processes, in this one: what it does where the other is slow, wrong or not there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from service.siblings import Siblings
from tests.service.support import FakeEngine, png, samples, serve, wait_until


@pytest.fixture
def alone(settings: Settings, engine: FakeEngine, short_path: Path) -> Iterator[httpx.Client]:
    """One of two processes, the other of which is not there."""
    app: FastAPI = create_app(settings, engine, Siblings(0, 2, short_path, [0, 0]))
    with serve(app, ready=False) as client:
        yield client


def test_sibling_that_does_not_follow_is_told(alone: httpx.Client) -> None:
    wait_until(lambda: alone.get("/models").status_code == 200)
    answer = alone.put("/budget", json={"budget": 0.75})
    assert (answer.status_code, answer.json()["code"]) == (500, "uneven")
    assert "process 1 did not" in answer.json()["error"]
    assert alone.put("/budget", json={"budget": 2}).status_code == 422
    answer = alone.post("/v2/repository/models/tiny/load", json={})
    assert (answer.status_code, answer.json().keys()) == (500, {"error"})


def test_readiness_and_metrics_know_of_a_sibling_that_is_not_there(alone: httpx.Client) -> None:
    wait_until(lambda: alone.get("/models").status_code == 200)
    answer = alone.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "starting")
    assert "process 1 is not ready" in answer.json()["error"]
    (images,) = samples(alone, "rnp_images_total")
    assert (images.labels["process"], images.value) == ("0", 0)
    assert alone.post("/classify", content=png()).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/readyz", 503)])
def test_sibling_that_says_nothing_is_not_waited_for_as_long_as_those_who_watch_wait(
    alone: httpx.Client, short_path: Path, path: str, status: int
) -> None:
    wait_until(lambda: alone.get("/models").status_code == 200)
    with socket.socket(socket.AF_UNIX) as sibling:
        sibling.bind(str(short_path / "1.sock"))
        sibling.listen()
        started = time.monotonic()
        assert alone.get(path).status_code == status
        assert time.monotonic() - started < 4


def test_metrics_of_a_sibling_that_refuses_are_left_out(
    alone: httpx.Client, short_path: Path
) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"error": "too many connections"}')

        def address_string(self) -> str:
            return "sibling"

    with UnixStreamServer(str(short_path / "1.sock"), Busy) as sibling:
        threading.Thread(target=sibling.serve_forever, daemon=True).start()
        wait_until(lambda: alone.get("/models").status_code == 200)
        (images,) = samples(alone, "rnp_images_total")
        sibling.shutdown()
    assert (images.labels["process"], images.value) == ("0", 0)
