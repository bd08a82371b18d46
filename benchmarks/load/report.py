"""A table for people, and JSON for scripts."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.load.outcome import Outcome, Summary
from benchmarks.measure.processor import processor_name
from service.cores import cpus

HEADER = (
    "offered/s", "answered/s", "p50 ms", "p90", "p95", "p99", "within target", "refused", "late",
    "errors", "compute", "accuracy", "queue + overhead ms",
)  # fmt: skip


def table(first: str, titles: Sequence[str]) -> None:
    """Print a table's head."""
    print(f"\n| {first} | {' | '.join(titles)} |")
    print("|---" * (len(titles) + 1) + "|", flush=True)


def line(name: str, cells: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def cells(row: Summary) -> list[str]:
    """A summary as a row below `HEADER`."""
    return [
        f"{row.offered:.0f}",
        f"{row.answered:.0f}",
        *(f"{ms:.1f}" for ms in (row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms)),
        f"{row.within:.1%}",
        *(f"{count}" for count in (row.refused, row.late, row.errors)),
        f"{row.fraction:.3f}",
        f"{row.accuracy:.1%}",
        f"{row.overhead_ms:.2f}",
    ]


class GeneratorCost:
    """What sending took, over several runs."""

    def __init__(self) -> None:
        self.requests, self.waited, self.processor_s = 0, 0, 0.0
        self.lags: list[tuple[float, ...]] = []

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.requests += len(outcome)
        self.waited += int((outcome.columns["waited"] == 1).sum())
        self.processor_s += outcome.processor_s
        self.lags.append(outcome.lag_ms)

    def values(self) -> dict[str, float]:
        """Of all runs; the lag is that of the worst run."""
        return {
            "us_per_request": 1e6 * self.processor_s / max(self.requests, 1),
            "waited_for_connection": self.waited,
            "lag_p50_ms": max((lag[0] for lag in self.lags), default=math.nan),
            "lag_p99_ms": max((lag[-1] for lag in self.lags), default=math.nan),
        }

    def print(self) -> None:
        """Say it."""
        found = self.values()
        print(
            f"\nThe generator took {found['us_per_request']:.0f} µs of processor a request, of the "
            f"same cores. In the worst run it sent half of the requests within "
            f"{found['lag_p50_ms']:.2f} ms of when they were due, 99 % within "
            f"{found['lag_p99_ms']:.2f} ms; that is part of the latencies. "
            f"{self.waited} requests waited as all connections were busy."
        )


def print_json(report: Mapping[str, Any]) -> None:
    """One line; what is not a number becomes null."""
    print(json.dumps(_plain(report)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def machine() -> str:
    """The processor's name, its cores, Python, and how busy it was lately."""
    cores, load = cpus(), os.getloadavg()[0]
    python = f"Python {platform.python_version()}"
    return f"{processor_name()}, {cores} cores, {python}, load average {load:.1f} before"
