"""`python -m service` as a process, with the engine that it chooses itself."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.acceptor import bind
from service.app import create_app
from service.connections import ServerConfig
from service.server import Server
from service.settings import SHIPPED, Settings
from tests.service.running import Load, accepts, environment, log, run, running
from tests.service.support import FakeEngine, png, wait_until


@contextmanager
def begun(client: httpx.Client, image: bytes) -> Iterator[socket.socket]:
    """A connection with a request whose head was read and whose body is yet to come."""
    head = (
        "POST /classify?budget=0.5 HTTP/1.1\r\nhost: x\r\nx-request-id: slow\r\n"
        f"content-length: {len(image)}\r\nexpect: 100-continue\r\n\r\n"
    )
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head.encode())
        assert b"100 Continue" in connection.recv(1000)
        yield connection


def test_main_sigterm_finishes_what_is_in_flight(bundles: Path, tmp_path: Path) -> None:
    image = png()
    with running(bundles, tmp_path) as (process, client):
        address = (client.base_url.host, client.base_url.port)
        with begun(client, image) as connection:
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(address))
            connection.sendall(image)
            answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert process.wait(20) == 0
        errors = process.stderr.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["compute"]["groups"] == 4
    (request,) = [line for line in log(tmp_path) if line.get("request_id") == "slow"]
    assert (request["message"], request["path"], request["status"]) == ("request", "/classify", 200)
    assert errors == ""


def test_main_sigterm_with_a_lame_duck_loses_no_request(bundles: Path, tmp_path: Path) -> None:
    """Clients go elsewhere once readiness fails, as those of a load balancer do."""
    with running(bundles, tmp_path, RNP_LAME_DUCK_S="2") as (process, client):
        load = Load(client)
        wait_until(lambda: load.statuses[200] > 20)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/tiny/ready").status_code == 503
        answer = client.post("/classify", content=png())
        # Or a client could be about to ask on a connection that is being closed.
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        asked = sum(load.statuses.values())
        wait_until(lambda: sum(load.statuses.values()) > asked + 20)
        load.stop.set()
        load.join()
        assert process.wait(20) == 0
        assert 2 <= time.monotonic() - started < 10
    assert load.lost == []
    assert load.statuses.keys() == {200}


def test_main_sigterm_at_once_answers_all_that_it_read(bundles: Path, tmp_path: Path) -> None:
    """Clients are cut off: what counts is that all that the service did reaches them."""
    with running(bundles, tmp_path) as (process, client):
        load = Load(client)
        wait_until(lambda: load.statuses[200] > 20)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        load.join()
        assert process.wait(20) == 0
        assert time.monotonic() - started < 10
    assert load.statuses.keys() <= {200, 503}
    requests = [line for line in log(tmp_path) if line.get("path") == "/classify"]
    assert Counter(line["status"] for line in requests) == load.statuses
    assert not [line for line in log(tmp_path) if line["level"] in ("warning", "error")]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_main_second_signal_ends_the_lame_duck(
    bundles: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    with running(bundles, tmp_path, RNP_LAME_DUCK_S="60") as (process, client):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        process.send_signal(stop)
        assert process.wait(10) == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_main_second_signal_does_not_skip_the_drain(
    bundles: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    image = png()
    with (
        running(bundles, tmp_path, RNP_LAME_DUCK_S="60") as (process, client),
        begun(client, image) as connection,
    ):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        process.send_signal(stop)
        wait_until(lambda: not accepts((client.base_url.host, client.base_url.port)))
        time.sleep(0.5)  # in which all would end that is not waited for
        connection.sendall(image)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


def test_main_one_more_ctrl_c_skips_the_drain(bundles: Path, tmp_path: Path) -> None:
    with (
        running(bundles, tmp_path, RNP_DRAIN_S="60") as (process, client),
        begun(client, png()),
    ):
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not accepts((client.base_url.host, client.base_url.port)))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize(("level", "seen"), [("DEBUG", {"debug", "info"}), ("WARNING", set())])
def test_main_log_level_is_that_of_the_settings(
    bundles: Path, tmp_path: Path, level: str, seen: set[str]
) -> None:
    with running(bundles, tmp_path, RNP_LOG_LEVEL=level):
        pass
    assert {line["level"] for line in log(tmp_path)} == seen


def test_main_request_that_never_ends_is_cut_off_in_time(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, RNP_DRAIN_S="1") as (process, client), begun(client, png()):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_main_killed_is_ready_again_within_three_seconds(tmp_path: Path) -> None:
    """Of its own time: on a machine that does other work, the clock says more."""
    with running(SHIPPED, tmp_path) as (process, client):
        load = Load(client)
        wait_until(lambda: load.statuses[200] > 20)
        process.kill()
        load.join()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with running(SHIPPED, tmp_path) as (_, client):
        assert client.post("/classify", content=png()).status_code == 200
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_main_a_large_shipped_bundle_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    large = "cifar10-vgg16"
    with running(SHIPPED, tmp_path) as (_, client):
        assert large not in [model["name"] for model in client.get("/models").json()["models"]]
        assert client.put(f"/models/{large}").status_code == 200
        answer = client.post("/classify", params={"model": large}, content=png()).json()
        assert answer["model"] == large


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "reached"),
    [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("localhost", ["127.0.0.1"]),
     ("0.0.0.0", ["127.0.0.1"]), ("", ["127.0.0.1", "::1"])],
)  # fmt: skip
def test_bind_takes_every_address_of_a_host(host: str, reached: list[str]) -> None:
    if "::1" in reached and not has_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listeners = bind(host, port)
    try:
        for listener in listeners:
            listener.listen()
        for address in reached:
            socket.create_connection((address, port)).close()
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the second bind fails")
def test_server_that_listens_second_says_so(settings: Settings, engine: FakeEngine) -> None:
    (first,) = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = bind("127.0.0.1", port)
    app = create_app(settings.model_copy(update={"port": port}), engine)
    service = app.state.service
    server = Server(ServerConfig(app, service.settings), service, 0, second)
    try:
        first.listen()
        server.run(second)
    finally:
        for listener in (first, *second):
            listener.close()
    assert str(service.failure) == f"port {port} of 127.0.0.1: Address already in use"


def test_main_port_0_is_a_free_one_that_the_log_names(bundles: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment(bundles, RNP_PORT="0", RNP_CACHE_DIR=str(tmp_path)),
            stdout=output,
        )
    try:
        wait_until(lambda: any("running on" in line["message"] for line in log(tmp_path)), 60)
        (said,) = [line["message"] for line in log(tmp_path) if "running on" in line["message"]]
        port = re.search(r"http://127\.0\.0\.1:(\d+) ", said)[1]
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    finally:
        process.kill()
        process.wait()


def test_main_misspelt_setting_is_one_sentence(bundles: Path) -> None:
    done = run(bundles, RNP_PROT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: RNP_PROT is no setting: did you mean RNP_PORT?\n"


def test_main_tampered_bundle_is_one_sentence(bundles: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    target.mkdir()
    for file in (bundles / "tiny").iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[-1] ^= 1
        (target / file.name).write_bytes(content)
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "model.safetensors does not match its SHA-256" in done.stderr
    assert done.stderr.count("\n") == 1


def test_main_engine_that_cannot_start_is_one_sentence(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no onnxruntime here')")
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    done = run(bundles, RNP_PORT="0", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr == "error: engine 'auto' cannot be loaded: no onnxruntime here\n"


@pytest.mark.parametrize("module", ["service.app", "models.preprocess", "models.bundle"])
def test_import_brings_no_training_library(module: str) -> None:
    heavy = ["torch", "matplotlib", "pandas", "datasets"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
