from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.app import create_app
from service.metrics import joined
from service.routes import operations
from service.settings import Settings
from service.siblings import Siblings
from tests.service.support import FakeEngine, serve, wait_until


def test_get_healthz_ok(reader: httpx.Client) -> None:
    assert reader.get("/healthz").json() == {"status": "ok"}


def test_get_readyz_ready(reader: httpx.Client) -> None:
    assert reader.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/readyz", "/models", "/classify"])
def test_route_before_bundles_are_loaded_is_503(
    settings: Settings, engine: FakeEngine, path: str
) -> None:
    client = TestClient(create_app(settings, engine))  # not entered: nothing is started
    response = client.request("POST" if path == "/classify" else "GET", path)
    assert (response.status_code, response.json()["code"]) == (503, "starting")
    assert response.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200
    client.app.state.service.decoders.shutdown()


def test_route_while_draining_is_503(client: httpx.Client, app) -> None:
    app.state.service.drain()
    for response in (client.get("/readyz"), client.post("/classify")):
        assert (response.status_code, response.json()["code"]) == (503, "draining")
    assert client.get("/healthz").status_code == 200


def test_get_metrics_is_prometheus_text(reader: httpx.Client) -> None:
    response = reader.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    assert families
    assert all(family.name.startswith("rnp_") for family in families)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/models", "/docs", "/v2"])
def test_head_is_a_get_without_its_body(reader: httpx.Client, path: str) -> None:
    response, whole = reader.head(path), reader.get(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == whole.headers["content-type"]
    assert reader.get("/healthz").json() == {"status": "ok"}  # nothing was left on the connection


def test_head_of_what_is_no_get_is_405(client: httpx.Client) -> None:
    assert client.head("/classify").status_code == 405
    assert client.put("/healthz").headers["allow"] == "GET, HEAD"
    assert 'route="/healthz"' in client.get("/metrics").text


def test_get_metrics_of_several_processes_is_joined_once_for_all_and_off_the_loop(
    settings: Settings,
    engine: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loops: list[asyncio.AbstractEventLoop | None] = []

    def slow(texts: Mapping[int, bytes]) -> bytes:
        loops.append(asyncio._get_running_loop())
        time.sleep(0.5)
        return joined(texts)

    monkeypatch.setattr(operations, "joined", slow)
    siblings = Siblings(0, 2, tmp_path, [0, 0])
    app = create_app(settings, engine, siblings)
    with serve(app, ready=False) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.get("/metrics"), range(4)))
    assert loops == [None]
    assert all('rnp_queue_depth{process="0"} 0.0' in answer.text for answer in answers)


@pytest.mark.parametrize("code", ["starting", "draining", "too_many_connections"])
def test_ready_of_a_sibling_that_is_not_says_which_way(
    settings: Settings, engine: FakeEngine, short_path: Path, code: str
) -> None:
    class NotReady(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"error": "no", "code": "%s"}' % code.encode())

        def address_string(self) -> str:
            return "sibling"

        def log_message(self, format: str, *args: object) -> None:
            pass

    app = create_app(settings, engine, Siblings(0, 2, short_path, [0, 0]))
    with (
        UnixStreamServer(str(short_path / "1.sock"), NotReady) as sibling,
        serve(app, ready=False) as client,
    ):
        threading.Thread(target=sibling.serve_forever, daemon=True).start()
        wait_until(lambda: client.get("/models").status_code == 200)
        answer = client.get("/readyz").json()
        others = [client.get(path) for path in ("/v2/health/ready", "/v2/models/tiny/ready")]
        sibling.shutdown()
    assert answer["code"] == ("draining" if code == "draining" else "starting")
    assert "process 1 is" in answer["error"]
    assert [(one.status_code, one.json()["error"]) for one in others] == [
        (503, answer["error"])
    ] * 2
