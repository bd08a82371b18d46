"""A server as a process of its own: started, asked, watched and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 120.0, 20.0
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerError(Exception):
    """A server that did not start; the message has the end of its log."""


class Server:
    """A running server.

    Attributes:
        port: on localhost.
    """

    host = "127.0.0.1"

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self._log = process, port, log

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of an answer; OSError or HTTPException if there is none."""
        connection = HTTPConnection(self.host, self.port, timeout=10)
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode(errors="replace")

    def wait_ready(self, path: str, within_s: float = START_S) -> float:
        """Seconds until a path is answered with 200.

        Raises:
            ServerError: the process ended, or took longer.
        """
        started = time.perf_counter()
        while time.perf_counter() - started < within_s and self.process.poll() is None:
            with contextlib.suppress(OSError, HTTPException):
                if self.ask("GET", path)[0] == 200:
                    return time.perf_counter() - started
            time.sleep(0.02)
        code = self.process.poll()
        what = f"is not ready after {within_s:g} s" if code is None else f"ended with code {code}"
        raise ServerError(f"the server {what}; it said:\n{self.log()}")

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-1500:]

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its series, see `total`."""
        return total(str(self.ask("GET", "/metrics")[1]), name, label)

    def pids(self) -> list[int]:
        """The process and all below it."""
        return _tree(self.process.pid)

    def memory_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(_statm(pid) for pid in self.pids()) * PAGE

    def kill(self) -> None:
        """As by kill −9."""
        self.process.kill()
        self.process.wait()


def total(metrics: str, name: str, label: str = "") -> float:
    """The sum of a metric over its series, one of each process or label.

    Args:
        metrics: as Prometheus reads them.
        label: written as there, of the series that count; absent, all do.

    Raises:
        ServerError: there is no such series.
    """
    series = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    values = [float(value) for labels, value in series if label in labels]
    if not values:
        raise ServerError(f"the metrics say nothing of {name} {label}".rstrip())
    return sum(values)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    variables: dict[str, str],
    prepare: Callable[[], None] | None = None,
) -> Iterator[Server]:
    """A server while the context lasts, and nothing of it after.

    Args:
        variables: of its environment, besides ours.
        prepare: called in the new process before the command.
    """
    with _ended_by_sigterm(), tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=plain_environment() | variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )
        try:
            yield Server(process, port, log)
        finally:
            _stop(process)


def plain_environment() -> dict[str, str]:
    """Ours, without the settings of whatever service its owner runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RNP_")}


@contextlib.contextmanager
def service(bundle: Path, port: int | None = None, **settings: object) -> Iterator[Server]:
    """Our service with one bundle as the default, ready for work.

    Args:
        port: absent, a free one.
        settings: RNP_ variables, in small letters.
    """
    port = port or free_port()
    with running([sys.executable, "-m", "service"], port, of_service(bundle, port, settings)) as it:
        it.wait_ready("/readyz")
        yield it


def of_service(bundle: Path, port: int, settings: dict[str, object]) -> dict[str, str]:
    """The environment of our service; its log lines are those of any service of ours."""
    own = {
        "port": port,
        "bundles": bundle.parent.resolve(),
        "load": bundle.name,
        "model": bundle.name,
    }
    return {f"RNP_{name.upper()}": str(value) for name, value in (own | settings).items()}


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((Server.host, 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C would, so that no server is left behind."""
    if threading.current_thread() is not threading.main_thread():  # only it may say so
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, then end what is left of its group and its tree."""
    below = _tree(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in below[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _tree(root: int) -> list[int]:
    """A process and all below it, as /proc tells; the process alone where there is none."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def _statm(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
