from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.load.server import ROOT, ServerError, free_port, running, total

CHILD = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
)
BENCHMARK = """
import multiprocessing, sys
import numpy as np
from benchmarks.load.generator import Plan, driving
from benchmarks.load.messages import read_index
from benchmarks.load.server import free_port, running
plan = Plan("127.0.0.1", free_port(), [b""], read_index, times=np.array([60.0]))
if __name__ == "__main__":
    with running([sys.executable, "-c", {!r}], plan.port, {{}}) as server, driving(plan) as load:
        (generator,) = multiprocessing.active_children()
        print(server.process.pid, generator.pid, flush=True)
        load.result()
"""
METRICS = """# HELP rnp_queue_depth Images that hold a place in the queue
# TYPE rnp_queue_depth gauge
"""
SLEEP = "import time; x = bytearray(50_000_000); time.sleep(60)"


# Finds and watches processes, as the code under test does.
proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")


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


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("rnp_queue_depth 3.0\nrnp_queue_depth_most 9.0", 3),
        ('rnp_queue_depth{process="0"} 0.0\nrnp_queue_depth{process="1"} 2.0', 2),
        ('rnp_queue_depth{process="1"} 0.0\nrnp_queue_depth_most{process="1"} 9.0', 0),
    ],
)
def test_total_is_that_of_all_processes(lines: str, found: float) -> None:
    assert total(f"{METRICS}{lines}\n", "rnp_queue_depth") == found


def test_total_of_a_label_leaves_others_out() -> None:
    text = 'x_total{process="0",why="a"} 1.0\nx_total{why="b"} 2.0\nx_total{why="a"} 4.0\n'
    assert total(text, "x_total", 'why="a"') == 5


def test_total_of_metrics_that_say_nothing_is_not_none() -> None:
    with pytest.raises(ServerError, match="say nothing of rnp_queue_depth"):
        total(METRICS, "rnp_queue_depth")


@proc
def test_children_count_and_end_with_the_server() -> None:
    with running([sys.executable, "-c", CHILD.format(SLEEP)], free_port(), {}) as server:
        assert comes_true(lambda: server.memory_bytes() > 60e6)
        pids = server.pids()
    assert len(pids) == 2
    assert comes_true(lambda: not any(lives(pid) for pid in pids))


@proc
def test_a_benchmark_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    script = tmp_path / "benchmark.py"
    script.write_text(BENCHMARK.format(SLEEP))
    with subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        stdout=subprocess.PIPE,
    ) as benchmark:
        assert benchmark.stdout
        server, generator = map(int, benchmark.stdout.readline().split())
        assert lives(server)
        assert lives(generator)
        benchmark.terminate()
        assert benchmark.wait(10) == 128 + signal.SIGTERM
    assert comes_true(lambda: not lives(server) and not lives(generator))
