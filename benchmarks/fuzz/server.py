"""A real service in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.load.server import plain_environment

START_S = 120


class Server:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def rss_bytes(self) -> int | None:
        """Resident memory; None where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) * 1024 if found else None

    def metric(self, name: str) -> float:
        """The value of a series, written as Prometheus does."""
        text = self.get("/metrics")
        return float(next(x for x in text.splitlines() if x.startswith(name)).split()[-1])

    def get(self, path: str) -> str:
        """The body of a plain request's answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())


@contextmanager
def running(bundles: Path, **variables: str) -> Iterator[Server]:
    """Start `python -m service` on a free port, and stop it.

    Args:
        variables: settings, as RNP_ variables.

    Raises:
        RuntimeError: it does not get ready, or died before it was told to stop.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"RNP_BUNDLES": str(bundles), "RNP_PORT": str(port), "RNP_LOG_LEVEL": "ERROR"}
    with TemporaryFile() as log:
        command = [sys.executable, "-m", "service"]
        process = subprocess.Popen(
            command, env=plain_environment() | own | variables, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            server = Server(process, port)
            _wait_ready(server, process)
            yield server
            died = process.poll()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()
            log.seek(0)
            for line in log.read().decode("utf-8", "replace").splitlines()[-5:]:
                print(f"service: {line[-1500:]}", file=sys.stderr)
        if died is not None:
            raise RuntimeError(f"the service ended by itself, with code {died}")


def _wait_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            server.get("/readyz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the service is not ready after {START_S} s, or ended: {process.poll()}")
