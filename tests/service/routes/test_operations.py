from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine


def test_get_healthz_ok(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_get_readyz_ready(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}


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


def test_get_metrics_is_prometheus_text(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    assert families
    assert all(family.name.startswith("rnp_") for family in families)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/models", "/docs", "/v2"])
def test_head_is_a_get_without_its_body(client: httpx.Client, path: str) -> None:
    response, whole = client.head(path), client.get(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == whole.headers["content-type"]
    assert client.get("/healthz").json() == {"status": "ok"}  # nothing was left on the connection


def test_head_of_what_is_no_get_is_405(client: httpx.Client) -> None:
    assert client.head("/classify").status_code == 405
    assert client.put("/healthz").headers["allow"] == "GET, HEAD"
    assert 'route="/healthz"' in client.get("/metrics").text
