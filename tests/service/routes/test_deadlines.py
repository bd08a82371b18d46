from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.service.sockets import connect
from tests.service.support import FakeEngine, metric, png, wait_until


def test_deadline_with_time_to_spare_gets_everything(client: httpx.Client) -> None:
    answer = client.post("/classify?deadline_ms=60000", content=png()).json()
    assert (answer["budget"], answer["budget_by"], answer["cap"]) == (1, "deadline", 1)


def test_deadline_a_named_budget_is_an_upper_bound(client: httpx.Client) -> None:
    answer = client.post("/classify?deadline_ms=60000&budget=0.4", content=png()).json()
    assert (answer["budget"], answer["budget_by"]) == (0.4, "request")


def test_deadline_that_passes_answered_when_it_does(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.gate.clear()
    started = time.perf_counter()
    response = client.post("/classify?deadline_ms=200", content=png())
    assert 0.2 <= time.perf_counter() - started < 2
    assert (response.status_code, response.json()["code"]) == (504, "deadline_passed")
    assert "deadline_ms was 200" in response.json()["error"]
    engine.gate.set()
    text = client.get("/metrics").text
    assert 'rnp_abandoned_total{model="tiny"} 1.0' in text
    assert 'rnp_rejected_total{reason="deadline_passed"} 1.0' in text


def test_deadline_that_cannot_be_kept_refused_at_once(
    client: httpx.Client, engine: FakeEngine
) -> None:
    # An engine that takes its time, as was seen.
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            engine.started.clear()
            engine.gate.clear()
            slow = pool.submit(client.post, "/classify?budget=1", content=png())
            assert engine.started.wait(10)
            time.sleep(0.3)
            engine.gate.set()
            slow.result()
    batches = len(engine.batches)
    response = client.post("/classify?deadline_ms=40", content=png())
    assert len(engine.batches) == batches
    assert (response.status_code, response.json()["code"]) == (504, "deadline_unreachable")
    # With more time than all of the network needs, it still answers.
    assert client.post("/classify?deadline_ms=9000", content=png()).json()["budget"] == 1


def test_deadline_of_one_part_is_an_error_of_each(client: httpx.Client, engine: FakeEngine) -> None:
    engine.gate.clear()
    files = [("file", ("a.png", png()))] * 2
    results = client.post("/classify?deadline_ms=100", files=files).json()["results"]
    engine.gate.set()
    assert [result["code"] for result in results] == ["deadline_passed"] * 2


def test_deadline_of_the_protocol_is_a_parameter(client: httpx.Client) -> None:
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192}],
        "parameters": {"deadline_ms": 60000},
    }
    answer = client.post("/v2/models/tiny/infer", json=body).json()
    assert answer["parameters"] == {"budget": 1, "budget_by": "deadline", "cap": 1}


def test_deadline_that_passes_while_the_image_comes_answered_when_it_does(
    client: httpx.Client, engine: FakeEngine
) -> None:
    with connect(client) as connection:
        started = time.perf_counter()
        connection.sendall(
            b"POST /classify?deadline_ms=200 HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nx"
        )
        answer = connection.recv(65536)
        assert 0.2 <= time.perf_counter() - started < 2
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"deadline_passed"' in answer
    assert engine.batches == []


def test_deadline_that_has_passed_already_is_refused(client: httpx.Client) -> None:
    response = client.post("/classify?deadline_ms=0.001", content=png())
    assert response.status_code == 504
    assert response.json()["code"] in ("deadline_unreachable", "deadline_passed")
    assert "0.001" in response.json()["error"]


@pytest.mark.parametrize("closing", ["while it waits", "while it runs"])
def test_client_that_hangs_up_is_counted_and_leaves_the_queue(
    client: httpx.Client, engine: FakeEngine, closing: str
) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/classify", content=png())
        assert engine.started.wait(10)
        if closing == "while it waits":
            hang_up(client, lambda: wait_until(lambda: metric(client, "rnp_queue_depth") == 1))
            wait_until(lambda: metric(client, "rnp_queue_depth") == 0)
        engine.gate.set()
        assert first.result().status_code == 200
    if closing == "while it runs":
        engine.started.clear()
        engine.gate.clear()
        hang_up(client, lambda: engine.started.wait(10))
    counted = 'rnp_requests_total{code="499",route="/classify"} 1.0'
    wait_until(lambda: counted in client.get("/metrics").text)
    assert 'rnp_abandoned_total{model="tiny"} 1.0' in client.get("/metrics").text
    engine.gate.set()
    assert client.post("/classify", content=png()).status_code == 200
    assert sum(engine.batches) == 2 + (closing == "while it runs")


def test_client_that_closes_its_sending_side_is_taken_to_have_gone(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.gate.clear()
    body = png()
    with connect(client) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert engine.started.wait(10)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    engine.gate.set()
    counted = 'rnp_requests_total{code="499",route="/classify"} 1.0'
    wait_until(lambda: counted in client.get("/metrics").text)


def hang_up(client: httpx.Client, after: Callable[[], object]) -> None:
    """Send an image, and go."""
    body, url = png(), client.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        after()
