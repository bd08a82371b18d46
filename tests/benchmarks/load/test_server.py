from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.load.server import ServerError, free_port, running

CHILD = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
)
SLEEP = "import time; x = bytearray(50_000_000); time.sleep(60)"


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no weights here')"]
    told = pytest.raises(ServerError, match=r"ended with code 1; it said:\nno weights here")
    with running(command, free_port(), {}) as server, told:
        server.wait_ready("/readyz")


def test_a_server_that_never_listens_is_told() -> None:
    told = pytest.raises(ServerError, match=r"is not ready after 0\.2 s")
    with running([sys.executable, "-c", SLEEP], free_port(), {}) as server, told:
        server.wait_ready("/readyz", within_s=0.2)


def test_children_count_and_end_with_the_server() -> None:
    with running([sys.executable, "-c", CHILD.format(SLEEP)], free_port(), {}) as server:
        assert comes_true(lambda: server.memory_bytes() > 60e6)
        pids = server.pids()
    assert len(pids) == 2
    assert comes_true(lambda: not any(lives(pid) for pid in pids))
