"""`python -m service` as a process, with the engine that it chooses itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.support import png, wait_ready, wait_until


def environment(bundles: Path, **variables: str) -> dict[str, str]:
    rest = {k: v for k, v in os.environ.items() if not k.startswith("RNP_")}
    return rest | {"RNP_BUNDLES": str(bundles), "RNP_THREADS": "1"} | variables


@contextmanager
def running(bundles: Path, cache: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env=environment(bundles, RNP_PORT=str(port), RNP_CACHE_DIR=str(cache)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_ready(client, seconds=60)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def test_main_sigterm_finishes_what_is_in_flight(bundles: Path, tmp_path: Path) -> None:
    image = png()
    head = (
        "POST /classify?budget=0.5 HTTP/1.1\r\nhost: x\r\nx-request-id: slow\r\n"
        f"content-length: {len(image)}\r\nexpect: 100-continue\r\n\r\n"
    )
    with running(bundles, tmp_path) as (process, client):
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(head.encode())
            assert b"100 Continue" in connection.recv(1000)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(address))
            connection.sendall(image)
            answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert process.wait(20) == 0
        output, errors = process.communicate()
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["compute"]["groups"] == 4
    lines = [json.loads(line) for line in output.splitlines()]
    (request,) = [line for line in lines if line.get("request_id") == "slow"]
    assert (request["message"], request["path"], request["status"]) == ("request", "/classify", 200)
    assert errors == ""


def accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionError:
        return False
    return True


def run(bundles: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment(bundles, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


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
