"""`python -m service` as a process, and clients that keep it busy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.service.support import client_of, png, wait_ready


def environment(bundles: Path, **variables: str) -> dict[str, str]:
    rest = {k: v for k, v in os.environ.items() if not k.startswith("RNP_")}
    return rest | {"RNP_BUNDLES": str(bundles), "RNP_THREADS": "1"} | variables


@contextmanager
def running(
    bundles: Path, cache: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A process and a client of it; it writes its log, which can be long, into the cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Killed, several processes leave the folder of their sockets, whose paths must be short.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        own = {"RNP_PORT": str(port), "RNP_CACHE_DIR": str(cache), "TMPDIR": scratch}
        with (cache / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                env=environment(bundles, **own | variables),
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            with client_of(f"http://127.0.0.1:{port}") as client:
                wait_ready(client, seconds=60)
                yield process, client
        finally:
            process.kill()
            process.communicate()


def run(bundles: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment(bundles, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def log(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cache / "log").read_text().splitlines()]


class Load:
    """Clients that ask on and on, until one cannot connect or `stop` is set."""

    def __init__(self, client: httpx.Client, clients: int = 4) -> None:
        self.url = client.base_url
        self.stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()

    def _ask(self) -> None:
        with client_of(self.url) as client:
            while not self.stop.is_set():
                try:
                    self.statuses[client.post("/classify", content=png()).status_code] += 1
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    self.lost.append(repr(error))


def accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionError:
        return False
    return True
