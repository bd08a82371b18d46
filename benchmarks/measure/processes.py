"""How many more images do several processes answer than one? As with `RNP_WORKERS` in a service.

Each holds an engine of one thread. In every round one of them runs alone, and then all at once.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.measure.timing import Spread
from benchmarks.measure.work import Kind, at_budget, engine_of, noise
from models.bundle import Bundle

# How long a round's run lasts; what takes longer is run once.
SECONDS = 1.0
# For the others to be ready; then something is wrong with them.
PATIENCE_S = 120


@dataclass(frozen=True)
class Throughput:
    """Images a second of one process, of all at once together, and how many times more that is."""

    network: str
    engine: str
    processes: int
    budget: float
    batch: int
    alone: Spread
    together: Spread
    gain: Spread


@dataclass(frozen=True)
class Job:
    """What a process is to run: batches of images at a budget, once all are ready if together."""

    budget: float
    batch: int
    rows: int
    together: bool


def measure(
    name: str,
    build: Callable[[], Bundle],
    kind: Kind,
    processes: int,
    budgets: Sequence[float],
    batches: Sequence[int],
    least_rows: int,
    rounds: int,
) -> Iterator[Throughput]:
    """Rates of one network at every batch and budget.

    Args:
        build: makes the network's bundle, in each process. least_rows: that a budget is met with.

    Raises:
        EOFError: a process has ended; it has said why.
    """
    with _started(build, kind, processes) as (engine, connections):
        for batch in batches:
            for budget in budgets:
                rates = np.empty((rounds, 2))
                for number in range(rounds):
                    job = (budget, batch, max(batch, least_rows))
                    one = connections[number % processes]
                    rates[number] = (
                        _rate([one], Job(*job, False)),
                        _rate(connections, Job(*job, True)),
                    )
                alone, together = rates.T
                spreads = Spread.of(alone), Spread.of(together), Spread.of(together / alone)
                yield Throughput(name, engine, processes, budget, batch, *spreads)


def _rate(connections: Sequence[Connection], job: Job) -> float:
    """Images a second of all these processes."""
    for connection in connections:
        connection.send(job)
    return sum(connection.recv() for connection in connections)


@contextmanager
def _started(
    build: Callable[[], Bundle], kind: Kind, processes: int
) -> Iterator[tuple[str, list[Connection]]]:
    """Names of the engines, and connections to them, all ready; they end with the context."""
    context = multiprocessing.get_context("spawn")
    barrier, connections, children = context.Barrier(processes, timeout=PATIENCE_S), [], []
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for _ in range(processes):
                ours, theirs = context.Pipe()
                arguments = (build, kind, Path(scratch), theirs, barrier)
                children.append(context.Process(target=_work, args=arguments, daemon=True))
                children[-1].start()
                connections.append(ours)
                # So that the end of a process that fails is seen here.
                theirs.close()
                # One after another: those that follow find the graphs built.
                names.add(ours.recv())
            yield ", ".join(sorted(names)), connections
        finally:
            for child in children:
                child.terminate()
                child.join()


def _work(
    build: Callable[[], Bundle],
    kind: Kind,
    cache_dir: Path,
    connection: Connection,
    barrier: multiprocessing.synchronize.Barrier,
) -> None:
    bundle = build()
    engine = engine_of(bundle, kind, 1, cache_dir)
    connection.send(engine.name)
    while True:
        job: Job = connection.recv()
        images = noise(bundle, job.rows)
        work, _ = at_budget(engine, bundle, images, job.budget, job.batch)
        work()
        if job.together:
            barrier.wait()
        runs, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < SECONDS:
            work()
            runs += 1
        connection.send(runs * job.rows / passed)
