"""Models that come and go while real clients ask over HTTP, with the engine of the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from models.card import Card
from service.app import create_app
from service.settings import Settings
from tests.service.support import (
    FakeEngine,
    add_bundle,
    client_of,
    make_card,
    png,
    serve,
    wait_until,
)

OLD, NEW = ("cat", "dog", "owl"), ("fox", "hen", "yak")
RELOADS = 12


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory of bundles, of which `tiny` is the default and `zebra` another one."""
    directory = tmp_path / "bundles"
    add_bundle(directory, make_card())
    add_bundle(directory, make_card("zebra"))
    return directory


@pytest.fixture
def settings(shelf: Path, tmp_path: Path) -> Settings:
    return Settings(bundles=shelf, threads=1, cache_dir=tmp_path / "cache", drain_s=20)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serve(app) as client:
        yield client


def renamed(card: Card) -> Card:
    return dataclasses.replace(card, labels=NEW)


def checked(response: httpx.Response) -> httpx.Response:
    assert response.status_code == 200, response.text
    return response


def labels(result: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(p["label"] for p in result["predictions"]))


def put(client: httpx.Client, name: str = "tiny", path: str | None = None) -> httpx.Response:
    return client.put(f"/models/{name}", json={"path": path} if path else None)


class SlowRequest:
    """A request whose head was read and checked, and whose body is yet to come."""

    def __init__(self, client: httpx.Client, query: str = "") -> None:
        self.body = png()
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), 20)
        self.socket.sendall(
            f"POST /classify{query} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(self.body)}\r\n"
            "connection: close\r\nexpect: 100-continue\r\n\r\n".encode()
        )
        assert b"100 Continue" in self.socket.recv(1000)

    def finish(self) -> httpx.Response:
        self.socket.sendall(self.body)
        answer = b"".join(iter(lambda: self.socket.recv(10_000), b""))
        self.socket.close()
        head, content = answer.split(b"\r\n\r\n", 1)
        return httpx.Response(int(head.split()[1]), content=content)


def single(client: httpx.Client) -> list[tuple[str, ...]]:
    return [labels(checked(client.post("/classify?budget=0.5", content=png())).json())]


def several(client: httpx.Client) -> list[tuple[str, ...]]:
    response = client.post("/classify", files=[("file", png()) for _ in range(3)])
    return [labels(result) for result in checked(response).json()["results"]]


def protocol(client: httpx.Client) -> list[tuple[str, ...]]:
    """Of an image that comes preprocessed, so in the form that the model asks for."""
    image = {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}
    outputs = [{"name": "probabilities", "parameters": {"classification": 3}}]
    asked = {"inputs": [image], "outputs": outputs}
    (output,) = checked(client.post("/v2/models/tiny/infer", json=asked)).json()["outputs"]
    return [tuple(sorted(text.split(":")[2] for text in output["data"]))]


def test_load_under_load_fails_no_request(client: httpx.Client, shelf: Path) -> None:
    add_bundle(shelf, renamed(make_card()), "other", seed=1)
    stop = threading.Event()

    def ask(how: Callable[[httpx.Client], list[tuple[str, ...]]]) -> Counter[tuple[str, ...]]:
        seen: Counter[tuple[str, ...]] = Counter()
        with client_of(client.base_url) as asking:
            while not stop.is_set():
                seen.update(how(asking))
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, how) for how in (single, single, several, protocol)]
        try:
            for path in itertools.islice(itertools.cycle(["other", "tiny"]), RELOADS):
                checked(put(client, path=path))
        finally:
            stop.set()
        seen = sum((one.result(20) for one in asking), Counter())
    # No answer mixes the two.
    assert set(seen) == {OLD, NEW}
    assert min(seen.values()) > 20


def test_load_request_that_came_before_is_answered_by_what_it_found(
    client: httpx.Client, shelf: Path, app: FastAPI
) -> None:
    before = app.state.service.model("tiny")
    slow = SlowRequest(client)
    shutil.rmtree(shelf / "tiny")
    add_bundle(shelf, renamed(make_card()))
    shown = put(client).json()
    assert (shown["labels"], shown["digest"] == before.digest) == (list(NEW), False)
    assert shown == client.get("/models/tiny").json() == client.get("/models").json()["models"][0]
    assert labels(client.post("/classify", content=png()).json()) == NEW
    answer = slow.finish()
    assert (answer.status_code, labels(answer.json())) == (200, OLD)


def test_unload_request_that_came_before_is_answered(client: httpx.Client, app: FastAPI) -> None:
    slow = SlowRequest(client, "?model=zebra")
    assert client.delete("/models/zebra").status_code == 204
    assert app.state.service.loader.unloading == {"zebra"}
    refused = client.post("/classify?model=zebra", content=png())
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")
    assert slow.finish().status_code == 200
    wait_until(lambda: not app.state.service.loader.unloading)


def test_load_what_runs_and_waits_is_answered_by_the_old_engine(
    settings: Settings, card: Card, engine: FakeEngine
) -> None:
    """The old engine is stuck meanwhile: neither the load nor requests after it wait for it."""
    with serve(create_app(settings, engine)) as client, ThreadPoolExecutor(4) as pool:
        engine.gate.clear()
        held = [pool.submit(client.post, "/classify", content=png())]
        assert engine.started.wait(10)
        held += [pool.submit(client.post, "/classify", content=png()) for _ in range(3)]
        wait_until(lambda: "rnp_queue_depth 3.0" in client.get("/metrics").text)
        assert put(client).json()["engine"] == "onnx"
        assert client.post("/classify", content=png()).status_code == 200
        # Those that wait for the old one still count.
        assert "rnp_queue_depth 3.0" in client.get("/metrics").text
        assert not any(one.done() for one in held)
        engine.gate.set()
        assert [one.result(10).status_code for one in held] == [200] * 4
        assert sum(engine.batches) == 4


@pytest.mark.parametrize("leave", ["replaced", "unloaded"])
@pytest.mark.usefixtures("no_collection")
def test_release_frees_all_of_a_model_at_once(
    client: httpx.Client, app: FastAPI, leave: str
) -> None:
    model = app.state.service.model("zebra")
    kept = [weakref.ref(part) for part in (model, model.engine, model.planner, model.batcher)]
    thread = model.batcher._thread
    checked(client.post("/classify?model=zebra", content=png()))
    if leave == "replaced":
        assert put(client, "zebra").status_code == 200
    else:
        assert client.delete("/models/zebra").status_code == 204
    thread.join(10)
    assert not thread.is_alive()
    del model
    wait_until(lambda: not any(part() for part in kept))


def test_release_request_that_never_ends_is_refused_in_time(settings: Settings) -> None:
    limited = settings.model_copy(update={"drain_s": 1})
    with serve(app := create_app(limited)) as client:
        thread = app.state.service.model("tiny").batcher._thread
        slow = SlowRequest(client)
        assert put(client).status_code == 200
        thread.join(10)
        assert not thread.is_alive()
        refused = slow.finish()
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert client.post("/classify", content=png()).status_code == 200


def test_load_at_once_takes_turns(client: httpx.Client, shelf: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: put(client, name), ["tiny", "zebra"] * 2))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json()["name"] for answer in answers] == ["tiny", "zebra"] * 2


def test_start_loads_only_what_it_is_told_to(settings: Settings) -> None:
    with serve(create_app(settings.model_copy(update={"load": ("zebra",)}))) as client:
        (model,) = client.get("/models").json()["models"]
        assert (model["name"], model["default"]) == ("zebra", True)
        checked(put(client, "tiny"))
        checked(client.post("/classify?model=tiny", content=png()))


def series(client: httpx.Client, model: str) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = (line.rsplit(" ", 1) for line in lines if f'model="{model}"' in line)
    return {name: float(value) for name, value in found}


def test_series_of_a_model_come_and_go_with_it(client: httpx.Client) -> None:
    images = 'rnp_images_total{model="zebra"}'
    client.post("/classify?model=zebra", content=png())
    before = series(client, "zebra")
    assert before[images] == 1
    put(client, "zebra")
    # What it learnt from live images is not the new one's.
    assert series(client, "zebra") == before | {'rnp_budget_error{model="zebra"}': 0}
    client.post("/classify?model=zebra", content=png())
    assert series(client, "zebra")[images] == 2
    client.delete("/models/zebra")
    assert series(client, "zebra") == {}
    put(client, "zebra")
    again = series(client, "zebra")
    assert (again.keys(), again[images]) == (before.keys(), 0)
    assert series(client, "tiny")


def test_statistics_count_since_a_model_was_loaded(client: httpx.Client) -> None:
    def counts() -> tuple[int, int]:
        (found,) = client.get("/v2/models/tiny/stats").json()["model_stats"]
        return found["inference_count"], found["execution_count"]

    client.post("/classify", content=png())
    assert counts() == (1, 1)
    put(client)
    assert counts() == (0, 0)
