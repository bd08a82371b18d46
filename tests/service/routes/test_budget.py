from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine, png, serve, wait_until


def test_get_budget_is_the_setting_at_first(client: httpx.Client) -> None:
    assert client.get("/budget").json() == {"mode": "fixed", "budget": 0.5}


def test_get_budget_before_there_is_a_model_is_refused(
    settings: Settings, engine: FakeEngine
) -> None:
    app = create_app(settings, engine)
    app.state.service.start = lambda: None
    with serve(app, ready=False) as client:
        response = client.get("/budget")
        assert (response.status_code, response.json()["code"]) == (503, "starting")


def test_put_budget_puts_it_in_force(client: httpx.Client) -> None:
    response = client.put("/budget", json={"mode": "fixed", "budget": 0.3})
    assert response.json() == client.get("/budget").json() == {"mode": "fixed", "budget": 0.3}
    assert 'rnp_budget{model="tiny"} 0.3' in client.get("/metrics").text


def test_put_budget_refused_one_changes_nothing(client: httpx.Client) -> None:
    assert client.put("/budget", json={"mode": "fixed", "budget": 0.01}).status_code == 422
    assert client.get("/budget").json()["budget"] == 0.5


AUTO = {"mode": "auto", "target_p95_ms": 50.0, "floor": 0.3, "ceiling": None}


def test_put_budget_auto_tells_what_is_in_force(client: httpx.Client) -> None:
    response = client.put("/budget", json={"mode": "auto", "target_p95_ms": 50, "floor": 0.3})
    assert response.json() == {**AUTO, "budget": 1.0}
    assert client.get("/budget").json() == {**AUTO, "budget": 1.0}
    assert 'rnp_budget{model="tiny"} 1.0' in client.get("/metrics").text


def test_auto_budget_falls_under_load_and_comes_back(
    client: httpx.Client, engine: FakeEngine
) -> None:
    client.put("/budget", json={"mode": "auto", "target_p95_ms": 1000, "floor": 0.3})
    answer = client.post("/classify", content=png()).json()
    assert (answer["budget"], answer["budget_by"]) == (1, "load")
    engine.started.clear()
    engine.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.post, "/classify", content=png())]
        assert engine.started.wait(10)
        waiting += [pool.submit(client.post, "/classify", content=png()) for _ in range(3)]
        wait_until(lambda: "rnp_queue_depth 3.0" in client.get("/metrics").text)
        time.sleep(1.1)
        engine.gate.set()
        budgets = [future.result().json()["budget"] for future in waiting]
    # Those that waited for the first one are late already.
    assert min(budgets) == pytest.approx(0.3)
    in_force = client.get("/budget").json()["budget"]
    assert in_force < 1
    time.sleep(0.5)
    assert client.get("/budget").json()["budget"] > in_force


def test_auto_budget_a_named_one_is_an_upper_bound(client: httpx.Client) -> None:
    client.put("/budget", json=AUTO)
    answer = client.post("/classify?budget=0.4", content=png()).json()
    assert (answer["budget"], answer["budget_by"]) == (0.4, "request")


def test_auto_budget_from_the_settings(settings: Settings, engine: FakeEngine) -> None:
    chosen = settings.model_copy(update={"target_p95_ms": 50, "floor": 0.3, "ceiling": 0.7})
    with serve(create_app(chosen, engine)) as client:
        assert client.get("/budget").json() == {**AUTO, "ceiling": 0.7, "budget": 0.7}
