"""Keys and rates, over HTTP."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.card import Card
from service.app import create_app
from service.logs import JsonFormatter
from service.security.keys import new_key
from service.settings import Settings
from tests.service.support import FakeEngine, png, serve

CALLER, CALLER_LINE = new_key("alice")
OPERATOR, OPERATOR_LINE = new_key("root")


@contextmanager
def guard(settings: Settings, engine: FakeEngine, folder: Path) -> Iterator[httpx.Client]:
    (folder / "callers").write_text(CALLER_LINE)
    (folder / "operators").write_text(OPERATOR_LINE)
    files = {"api_keys_file": folder / "callers", "operator_keys_file": folder / "operators"}
    with serve(create_app(settings.model_copy(update=files), engine)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(
    settings: Settings, card: Card, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Of a service that all these tests share, but for those that `own` one."""
    engine = FakeEngine(card.table(), len(card.labels))
    with guard(settings, engine, tmp_path_factory.mktemp("keys")) as client:
        yield client


@pytest.fixture
def own(settings: Settings, engine: FakeEngine, tmp_path: Path) -> Iterator[httpx.Client]:
    with guard(settings, engine, tmp_path) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def check_refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert set(response.json()) == {"error", "code"}
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/classify", "/v2/models/tiny/infer"])
def test_caller_needs_a_key(guarded: httpx.Client, path: str) -> None:
    headers = {"Inference-Header-Content-Length": "0"} if "v2" in path else {}
    absent = guarded.post(path, content=png(), headers=headers)
    assert absent.status_code == 401
    assert absent.headers["www-authenticate"].startswith("Bearer")
    wrong = guarded.post(path, content=png(), headers=headers | bearer("x" + CALLER))
    assert wrong.status_code == 401
    for key in (CALLER, OPERATOR):
        for given in (bearer(key), {"X-API-Key": key}, {"Authorization": f"bearer  {key}"}):
            assert guarded.post(path, content=png(), headers=headers | given).status_code == 200


def test_head_needs_the_key_that_a_get_does(guarded: httpx.Client) -> None:
    assert guarded.head("/readyz").status_code == 200
    assert guarded.head("/models").status_code == 401
    assert guarded.head("/models", headers=bearer(CALLER)).status_code == 200


def test_refusal_under_v2_has_the_protocols_form(guarded: httpx.Client) -> None:
    response = guarded.get("/v2/models/tiny")
    assert (response.status_code, set(response.json())) == (401, {"error"})


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", f"Basic {CALLER}", CALLER, f"Bearer {CALLER}, x"],
    ids=["empty", "no key", "basic", "no scheme", "more than a key"],
)
def test_other_authorization_is_no_key(guarded: httpx.Client, authorization: str) -> None:
    response = guarded.get("/models", headers={"Authorization": authorization})
    check_refused(response, 401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/budget"),
        ("PUT", "/models/tiny"),
        ("DELETE", "/models/tiny"),
        ("POST", "/v2/repository/models/tiny/load"),
        ("GET", "/nope"),
    ],
)
def test_operators_routes_are_refused_to_callers(
    guarded: httpx.Client, method: str, path: str
) -> None:
    def ask(headers: dict[str, str]) -> int:
        body = {"mode": "fixed", "budget": 0.9}
        return guarded.request(method, path, headers=headers, json=body).status_code

    assert (ask({}), ask(bearer(CALLER))) == (401, 403)
    assert ask(bearer(OPERATOR)) not in (401, 403)


def test_caller_cannot_set_the_budget(own: httpx.Client) -> None:
    response = own.put("/budget", json={"budget": 0.9}, headers=bearer(CALLER))
    check_refused(response, 403, "forbidden")
    assert own.get("/budget", headers=bearer(CALLER)).json()["budget"] == 0.5
    assert own.put("/budget", json={"budget": 0.9}, headers=bearer(OPERATOR)).is_success
    assert own.get("/budget", headers=bearer(CALLER)).json()["budget"] == 0.9


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/ready"]
)
def test_open_routes_need_no_key(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_refusal_reads_nothing_of_the_body(own: httpx.Client) -> None:
    address = (own.base_url.host, own.base_url.port)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\nx")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    metrics = own.get("/metrics").text
    assert 'rnp_requests_total{code="401",route="/classify"} 1.0' in metrics
    assert 'rnp_rejected_total{reason="unauthorized"} 1.0' in metrics


def test_openapi_tells_whose_key_each_route_needs(guarded: httpx.Client) -> None:
    for _ in range(2):
        api = guarded.get("/openapi.json").json()
    assert set(api["components"]["securitySchemes"]) == {"bearer", "header"}
    paths = api["paths"]
    assert "security" not in paths["/healthz"]["get"]
    assert paths["/classify"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert paths["/budget"]["put"]["description"].endswith("Operators only.")
    assert paths["/budget"]["put"]["description"].count("Operators only.") == 1
    assert "Operators" not in paths["/budget"]["get"]["description"]
    assert {"401", "403"} <= set(paths["/classify"]["post"]["responses"])


def test_openapi_without_keys_names_none(client: httpx.Client) -> None:
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_log_has_the_keys_name_and_never_the_key(
    own: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    caplog.set_level(logging.DEBUG)
    try:
        own.post("/classify?budget=0.5", content=png(), headers=bearer(CALLER))
        own.put("/budget", json={"budget": 0.7}, headers=bearer(OPERATOR))
        assert own.put("/models/tiny", headers=bearer(OPERATOR), timeout=60).is_success
        own.put("/budget", json={"budget": 0.7}, headers={"X-API-Key": CALLER})
        own.get("/models", headers=bearer("wrong-key"))
    finally:
        root.removeHandler(handler)
    text = "\n".join(lines)
    assert not any(secret in text for secret in (CALLER, OPERATOR, "wrong-key"))
    values: list[dict[str, Any]] = [json.loads(line) for line in lines]
    requests = [line for line in values if line["message"] == "request"]
    first, *_ = [line for line in requests if line["path"] == "/classify"]
    expected = {"key": "alice", "status": 200, "model": "tiny", "images": 1, "budget": 0.5}
    assert expected.items() <= first.items()
    assert 0 < first["fraction"] < 1
    assert first["seconds"] > 0
    assert len(first["request_id"]) == 32
    (event,) = [line for line in values if line["message"] == "budget set"]
    assert (event["key"], event["mode"], event["budget"]) == ("root", "fixed", 0.7)
    (event,) = [line for line in values if line["message"] == "loaded" and line.get("key")]
    assert (event["key"], event["model"]) == ("root", "tiny")
    codes = [(line.get("key"), line.get("code")) for line in requests if line["status"] >= 400]
    assert codes == [("alice", "forbidden"), (None, "unauthorized")]


@pytest.fixture
def limited(settings: Settings, engine: FakeEngine) -> Iterator[httpx.Client]:
    update = {"rate_per_s": 0.5, "rate_burst": 3}
    with serve(create_app(settings.model_copy(update=update), engine)) as client:
        yield client


def test_rate_without_keys_is_per_address(limited: httpx.Client) -> None:
    for _ in range(3):
        assert limited.post("/classify", content=png()).status_code == 200
    response = limited.post("/classify", content=png(), headers={"X-Forwarded-For": "192.0.2.1"})
    check_refused(response, 429, "rate_limited")
    assert "3 images may come at once and 0.5 a second after" in response.json()["error"]
    assert response.headers["retry-after"] == "2"
    assert limited.get("/readyz").status_code == limited.get("/docs").status_code == 200
    metrics = limited.get("/metrics").text
    assert 'rnp_requests_total{code="429",route="/classify"} 1.0' in metrics
    assert 'rnp_rejected_total{reason="rate_limited"} 1.0' in metrics


def test_rate_counts_images(limited: httpx.Client) -> None:
    parts = [("file", png())] * 4
    assert limited.post("/classify", files=parts).status_code == 200
    response = limited.post("/classify", content=png())
    assert response.status_code == 429
    assert response.headers["retry-after"] == "4"  # for the fourth image, and for this one


def test_rate_counts_images_that_cannot_be_read(limited: httpx.Client) -> None:
    response = limited.post("/classify", files=[("file", b"no image")] * 4)
    assert [result["code"] for result in response.json()["results"]] == ["not_an_image"] * 4
    assert limited.post("/classify", content=png()).headers["retry-after"] == "4"


def test_rate_refusal_of_a_head_counts_as_its_route(limited: httpx.Client) -> None:
    for _ in range(4):
        response = limited.head("/models")
    assert response.status_code == 429
    assert 'rnp_requests_total{code="429",route="/models"} 1.0' in limited.get("/metrics").text


def test_rate_with_keys_is_per_key(settings: Settings, engine: FakeEngine, tmp_path: Path) -> None:
    bob, bob_line = new_key("bob")
    path = tmp_path / "keys"
    path.write_text(f"{CALLER_LINE}\n{bob_line}\n")
    update = {"api_keys_file": path, "rate_per_s": 0.1, "rate_burst": 1}
    with serve(create_app(settings.model_copy(update=update), engine)) as client:
        codes = [client.get("/models", headers=bearer(k)).status_code for k in (CALLER, bob, bob)]
    assert codes == [200, 200, 429]


def test_rate_believes_a_trusted_proxy(settings: Settings, engine: FakeEngine) -> None:
    update = {"rate_per_s": 0.1, "rate_burst": 1, "trusted_proxies": ("127.0.0.1",)}
    with serve(create_app(settings.model_copy(update=update), engine)) as client:
        codes = [
            client.get("/models", headers={"X-Forwarded-For": address}).status_code
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.2")
        ]
    assert codes == [200, 200, 429]
