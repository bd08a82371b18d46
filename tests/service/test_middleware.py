from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.metrics import Metrics
from service.middleware import Observer
from service.settings import Settings
from tests.service.support import FakeEngine, png, serve


def test_request_id_given_is_kept(reader: httpx.Client) -> None:
    response = reader.post("/classify", content=png(), headers={"x-request-id": "a-1.b:c_D"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "a-1.b:c_D"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", '"', "é".encode()])
def test_request_id_not_plain_is_replaced(reader: httpx.Client, given: str | bytes) -> None:
    response = reader.get("/healthz", headers={"x-request-id": given})
    assert len(response.headers["x-request-id"]) == 32


def test_request_id_absent_is_new_each_time(reader: httpx.Client) -> None:
    ids = {reader.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_requests_counted_by_route_and_code(client: httpx.Client) -> None:
    for number in range(3):
        client.get(f"/nope/{number}")
    client.get("/classify")
    client.post("/classify?budget=9")
    text = client.get("/metrics").text
    assert 'rnp_requests_total{code="404",route="other"} 3.0' in text
    assert 'rnp_requests_total{code="405",route="/classify"} 1.0' in text
    assert 'rnp_requests_total{code="422",route="/classify"} 1.0' in text
    assert "/nope" not in text


@pytest.mark.parametrize(("server", "counted"), [(("host", 8000), 1), (("0.sock", None), 0)])
def test_requests_of_a_sibling_are_counted_where_they_came_from(
    server: tuple[str, int | None], counted: int
) -> None:
    async def nothing(*_: object) -> None:
        pass

    metrics = Metrics()
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "server": server}
    asyncio.run(Observer(nothing, metrics)(scope, nothing, nothing))
    assert metrics.text().count(b"rnp_requests_total{") == counted
    assert metrics.text().count(b"rnp_request_seconds_count{") == counted


def test_request_that_the_end_of_the_service_cuts_off_is_told_so(
    settings: Settings, engine: FakeEngine
) -> None:
    hasty = settings.model_copy(update={"drain_s": 1})
    with ThreadPoolExecutor(1) as pool:
        app = create_app(hasty, engine)
        with serve(app) as client:
            engine.gate.clear()
            url = client.base_url.join("/classify")
            cut = pool.submit(httpx.post, url, content=png(), verify=False)
            assert engine.started.wait(10)
            threading.Timer(3, engine.gate.set).start()
            app.state.service.leave()
        response = cut.result(10)
    assert (response.status_code, response.json()["code"]) == (503, "draining")
    assert response.headers["retry-after"] == "1"


def request_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.msg == "request"]


def test_log_line_tells_what_images_cost(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    results = client.post("/classify?budget=0.6", files=[("file", png())] * 2).json()["results"]
    (line,) = request_lines(caplog)
    assert (line["model"], line["images"], line["budget"]) == ("tiny", 2, 0.6)
    assert line["fraction"] == pytest.approx(results[0]["compute"]["fraction"], abs=1e-4)
    assert "code" not in line


def test_log_line_of_what_machines_watch_is_for_debugging(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    watched = ["/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"]
    for path in (*watched, "/models"):
        assert client.get(path).status_code == 200
    levels = {line["path"]: line["levelname"] for line in request_lines(caplog)}
    assert levels == {**dict.fromkeys(watched, "DEBUG"), "/models": "INFO"}


def test_log_line_of_a_refusal_has_its_code_and_no_images(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.post("/classify", content=b"no image")
    client.get("/" + "x" * 1000)
    first, second = request_lines(caplog)
    assert (first["status"], first["code"]) == (400, "not_an_image")
    assert "images" not in first
    assert (second["code"], len(second["path"])) == ("not_found", 200)
