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
from pathlib import Path

import httpx
import pytest

from models.card import Card
from tests.service.running import Load, accepts, environment, log, run, running
from tests.service.support import (
    add_bundle,
    client_of,
    make_card,
    samples,
    wait_until,
)

TWO = {"RNP_WORKERS": "2", "RNP_MODEL": "tiny"}
# Of two processes, both have taken one of so many connections.
MANY = 40
# What finds children, on Linux.
proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")


@pytest.fixture(scope="module")
def two_bundles(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    add_bundle(directory, card)
    add_bundle(directory, make_card(name="other"))
    return directory


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service of all these tests writes its log."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def client(two_bundles: Path, cache: Path) -> Iterator[httpx.Client]:
    """Of a service of two processes that serves all tests that leave it running."""
    with running(two_bundles, cache, **TWO) as (_, client):
        yield client


def ask_all(client: httpx.Client, method: str, path: str) -> list[httpx.Response]:
    """The answers on many connections of their own."""
    with client_of(client.base_url) as other:
        return [other.request(method, path, headers={"connection": "close"}) for _ in range(MANY)]


def by_process(client: httpx.Client, name: str, **labels: str) -> dict[str, float]:
    """The values of a series."""
    return {one.labels["process"]: one.value for one in samples(client, name, **labels)}


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    serving = [int(pid) for pid in path.read_text().split()]
    return [pid for pid in serving if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_processes_share_the_port_and_count_together(client: httpx.Client, cache: Path) -> None:
    load = Load(client, clients=16)
    wait_until(lambda: load.statuses[200] > 100)
    load.stop.set()
    load.join()
    images = by_process(client, "rnp_images_total", model="tiny")
    assert images.keys() == {"0", "1"}
    assert min(images.values()) > 0
    assert sum(images.values()) == load.statuses[200]
    assert set(by_process(client, "rnp_queue_depth")) == {"0", "1"}
    # Of all these tests, this one alone asks for it.
    lines = [line for line in log(cache) if line.get("path") == "/classify"]
    assert Counter(str(line["process"]) for line in lines) == images


def test_who_has_fewer_connections_takes_the_next_ones(client: httpx.Client, cache: Path) -> None:
    def connect(stack: ExitStack) -> tuple[httpx.Client, int]:
        """A client that stays connected, and the process that it is connected to."""
        other = stack.enter_context(client_of(client.base_url))
        asked = other.get("/budget").headers["x-request-id"]
        wait_until(lambda: any(line.get("request_id") == asked for line in log(cache)))
        return other, next(
            line["process"] for line in log(cache) if line.get("request_id") == asked
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


def test_budget_is_set_in_all_processes(client: httpx.Client) -> None:
    for budget in (0.875, 0.625):
        assert client.put("/budget", json={"budget": budget}).status_code == 200
        assert {one.json()["budget"] for one in ask_all(client, "GET", "/budget")} == {budget}
    assert client.put("/budget", json={"budget": 2}).status_code == 422
    assert set(by_process(client, "rnp_budget").values()) == {0.625}


def test_models_come_and_go_in_all_processes(client: httpx.Client) -> None:
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
def test_process_that_dies_ends_the_service(two_bundles: Path, tmp_path: Path) -> None:
    with running(two_bundles, tmp_path, **TWO) as (process, client):
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


def test_killed_parent_takes_the_processes_along(two_bundles: Path, tmp_path: Path) -> None:
    with running(two_bundles, tmp_path, **TWO) as (process, client):
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
    shutil.copytree(two_bundles, tmp_path / "bundles")
    weights = tmp_path / "bundles" / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    done = run(tmp_path / "bundles", RNP_PORT="0", RNP_CACHE_DIR=str(tmp_path), **TWO)
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
            with httpx.Client(transport=httpx.HTTPTransport(False, uds=str(path))) as sibling:
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
def test_many_who_watch_at_once_do_not_wait_for_each_other(client: httpx.Client, path: str) -> None:
    statuses: Counter[int] = Counter()

    def ask() -> None:
        with client_of(client.base_url, timeout=30) as other:
            statuses[other.get(path).status_code] += 1

    threads = [threading.Thread(target=ask) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {200: 120}
