"""A service of two processes, as a whole: nobody who asks it sees that it has two."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from models.card import Card
from service.app import create_app
from service.settings import Settings
from service.siblings import Siblings
from tests.service.running import Load, accepts, environment, log, run, running
from tests.service.support import FakeEngine, add_bundle, make_card, png, serve, wait_until

TWO = {"RNP_WORKERS": "2", "RNP_MODEL": "tiny"}
# Of two processes, both have taken one of so many connections.
MANY = 40
# What finds children, on Linux.
proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")


@pytest.fixture
def two_bundles(bundles: Path, card: Card, tmp_path: Path) -> Path:
    directory = tmp_path / "bundles"
    shutil.copytree(bundles, directory)
    add_bundle(directory, make_card(name="other"))
    return directory


@pytest.fixture
def service(
    two_bundles: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with running(two_bundles, tmp_path, **TWO) as service:
        yield service


def ask_all(client: httpx.Client, method: str, path: str) -> list[httpx.Response]:
    """The answers on many connections of their own."""
    with httpx.Client(base_url=client.base_url, trust_env=False) as other:
        return [other.request(method, path, headers={"connection": "close"}) for _ in range(MANY)]


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    """A series that has no other labels, by process."""
    text = client.get("/metrics").text
    return {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("model", "tiny") == "tiny"
    }


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    serving = [int(pid) for pid in path.read_text().split()]
    return [pid for pid in serving if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_processes_share_the_port_and_count_together(
    service: tuple[subprocess.Popen[str], httpx.Client], tmp_path: Path
) -> None:
    _, client = service
    load = Load(client, clients=16)
    wait_until(lambda: load.statuses[200] > 100)
    load.stop.set()
    load.join()
    images = samples(client, "rnp_images_total")
    assert images.keys() == {"0", "1"}
    assert min(images.values()) > 0
    assert sum(images.values()) == load.statuses[200]
    assert set(samples(client, "rnp_queue_depth")) == {"0", "1"}
    lines = [line for line in log(tmp_path) if line.get("path") == "/classify"]
    by_process = Counter(str(line["process"]) for line in lines)
    assert by_process == images


def test_who_has_fewer_connections_takes_the_next_ones(
    service: tuple[subprocess.Popen[str], httpx.Client], tmp_path: Path
) -> None:
    _, client = service

    def connect(stack: ExitStack) -> tuple[httpx.Client, int]:
        """A client that stays connected, and the process that it is connected to."""
        other = stack.enter_context(httpx.Client(base_url=client.base_url, trust_env=False))
        asked = other.get("/budget").headers["x-request-id"]
        wait_until(lambda: any(line.get("request_id") == asked for line in log(tmp_path)))
        return other, next(
            line["process"] for line in log(tmp_path) if line.get("request_id") == asked
        )

    with ExitStack() as stack:
        connected = [connect(stack) for _ in range(MANY)]
        for other, process in connected:
            if process == 1:
                other.close()
        time.sleep(0.5)  # the process tells every 0.1 s
        next_ones = Counter(connect(stack)[1] for _ in range(MANY // 4))
    # One that is busy for too long may lose some of them.
    assert next_ones[1] > 0.5 * next_ones.total()


def test_budget_is_set_in_all_processes(
    service: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    _, client = service
    for budget in (0.875, 0.625):
        assert client.put("/budget", json={"budget": budget}).status_code == 200
        assert {one.json()["budget"] for one in ask_all(client, "GET", "/budget")} == {budget}
    assert client.put("/budget", json={"budget": 2}).status_code == 422
    assert set(samples(client, "rnp_budget").values()) == {0.625}


def test_models_come_and_go_in_all_processes(
    service: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    _, client = service
    assert client.delete("/models/other").status_code == 204
    assert {one.status_code for one in ask_all(client, "GET", "/models/other")} == {404}
    assert client.post("/v2/repository/models/other/load", json={}).status_code == 200
    assert {one.status_code for one in ask_all(client, "GET", "/models/other")} == {200}
    loaded = client.put("/models/other", json={"path": "other"})
    assert (loaded.status_code, loaded.json()["name"]) == (200, "other")


def test_sigterm_loses_no_request_of_any_process(two_bundles: Path, tmp_path: Path) -> None:
    with running(two_bundles, tmp_path, **TWO | {"RNP_LAME_DUCK_S": "3"}) as (process, client):
        load = Load(client, clients=8)
        wait_until(lambda: load.statuses[200] > 50)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: {one.status_code for one in ask_all(client, "GET", "/readyz")} == {503})
        load.stop.set()
        load.join()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert load.lost == []
    assert load.statuses.keys() == {200}


@proc
def test_process_that_dies_ends_the_service(
    service: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    process, client = service
    pids = children(process)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    assert process.wait(20) == 1
    assert not accepts((client.base_url.host, client.base_url.port))


@proc
@pytest.mark.parametrize("cause", ["death", "signal"])
def test_process_that_stands_still_does_not_hold_up_the_end(
    two_bundles: Path, tmp_path: Path, cause: str
) -> None:
    with running(two_bundles, tmp_path, **TWO | {"RNP_DRAIN_S": "0"}) as (process, client):
        stuck, other = children(process)
        os.kill(stuck, signal.SIGSTOP)
        try:
            if cause == "death":
                os.kill(other, signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 1
        except subprocess.TimeoutExpired:
            os.kill(stuck, signal.SIGKILL)
            raise
        assert not accepts((client.base_url.host, client.base_url.port))
        assert process.stderr is not None
        said = f"error: killed what did not stop within 5 s: process {stuck}\n"
        assert process.stderr.read() == said


def test_killed_parent_takes_the_processes_along(
    service: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    process, client = service
    process.kill()
    started = time.monotonic()
    wait_until(lambda: not accepts((client.base_url.host, client.base_url.port)))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_port_that_is_taken_is_one_sentence(two_bundles: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(two_bundles, RNP_PORT=str(port), **TWO | {"RNP_WORKERS": workers})
    assert done.returncode == 1
    assert done.stderr == f"error: port {port} of 127.0.0.1: Address already in use\n"


@pytest.mark.parametrize("workers", ["1", "2"])
# The first has no address; the second, with an empty part, could be no name.
@pytest.mark.parametrize("host", ["fe80::1%none", "a..b"])
def test_host_without_an_address_is_one_sentence(
    two_bundles: Path, host: str, workers: str
) -> None:
    done = run(two_bundles, RNP_HOST=host, **TWO | {"RNP_WORKERS": workers})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port 8000 of {host}: ")
    assert done.stderr.count("\n") == 1


def test_bad_bundle_ends_all_processes(two_bundles: Path, tmp_path: Path) -> None:
    weights = two_bundles / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    done = run(two_bundles, RNP_PORT="0", RNP_CACHE_DIR=str(tmp_path), **TWO)
    assert done.returncode == 1
    assert "model.safetensors does not match its SHA-256" in done.stderr


@proc
def test_signal_while_processes_are_started_reaches_all(two_bundles: Path, tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment(two_bundles, RNP_PORT="0", RNP_CACHE_DIR=str(tmp_path), **TWO),
            stdout=subprocess.DEVNULL,
        )
        # The first of two is being started.
        wait_until(lambda pid=process.pid: Path(f"/proc/{pid}/task/{pid}/children").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_model_that_is_gone_in_one_process_can_be_removed_from_all(
    two_bundles: Path, tmp_path: Path
) -> None:
    with (
        tempfile.TemporaryDirectory() as short,  # as a socket's path must be
        running(two_bundles, tmp_path, **TWO | {"TMPDIR": short}) as (_, client),
    ):
        for index in (0, 1):
            (path,) = Path(short).glob(f"rnp-*/{index}.sock")
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as sibling:
                assert sibling.delete("http://localhost/models/other").status_code == 204
            assert client.delete("/models/other").status_code == 204
            assert {one.status_code for one in ask_all(client, "GET", "/models/other")} == {404}
            assert client.delete("/models/other").status_code == 404
            assert client.put("/models/other").status_code == 200


def test_what_is_forwarded_is_paid_for_once(two_bundles: Path, tmp_path: Path) -> None:
    few = {"RNP_RATE_PER_S": "0.001", "RNP_RATE_BURST": "1", "RNP_TRUSTED_PROXIES": "127.0.0.1"}
    with running(two_bundles, tmp_path, **TWO | few) as (_, client):
        for number in range(4):
            address = {"x-forwarded-for": f"10.0.0.{number}"}
            answer = client.put("/budget", json={"budget": 0.5 + number / 8}, headers=address)
            assert answer.status_code == 200
        assert client.put("/budget", json={"budget": 0.5}, headers=address).status_code == 429


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_many_who_watch_at_once_do_not_wait_for_each_other(
    service: tuple[subprocess.Popen[str], httpx.Client], path: str
) -> None:
    _, client = service
    statuses: Counter[int] = Counter()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as other:
            statuses[other.get(path).status_code] += 1

    threads = [threading.Thread(target=ask) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {200: 120}


@pytest.fixture
def alone(settings: Settings, engine: FakeEngine, tmp_path: Path) -> Iterator[httpx.Client]:
    """One of two processes, the other of which is not there."""
    app: FastAPI = create_app(settings, engine, Siblings(0, 2, tmp_path, [0, 0]))
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
    assert samples(alone, "rnp_images_total") == {"0": 0.0}
    assert alone.post("/classify", content=png()).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/readyz", 503)])
def test_sibling_that_says_nothing_is_not_waited_for_as_long_as_those_who_watch_wait(
    alone: httpx.Client, tmp_path: Path, path: str, status: int
) -> None:
    wait_until(lambda: alone.get("/models").status_code == 200)
    with socket.socket(socket.AF_UNIX) as sibling:
        sibling.bind(str(tmp_path / "1.sock"))
        sibling.listen()
        started = time.monotonic()
        assert alone.get(path).status_code == status
        assert time.monotonic() - started < 4


def test_metrics_of_a_sibling_that_refuses_are_left_out(
    alone: httpx.Client, tmp_path: Path
) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"error": "too many connections"}')

        def address_string(self) -> str:
            return "sibling"

    with UnixStreamServer(str(tmp_path / "1.sock"), Busy) as sibling:
        threading.Thread(target=sibling.serve_forever, daemon=True).start()
        wait_until(lambda: alone.get("/models").status_code == 200)
        assert samples(alone, "rnp_images_total") == {"0": 0.0}
        sibling.shutdown()
