"""What the scenarios of a benchmark share: a service, what it is sent, and what was found."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.load import report
from benchmarks.load.generator import Plan, drive
from benchmarks.load.images import Files
from benchmarks.load.messages import post, read_classification
from benchmarks.load.outcome import Mask, Outcome, Summary, summarise
from benchmarks.load.server import Server

Row = dict[str, Any]


@dataclass
class Bench:
    """A service, what is sent to it, and what was found so far."""

    server: Server
    files: Files
    flags: argparse.Namespace
    cost: report.GeneratorCost = field(default_factory=report.GeneratorCost)
    rows: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    full: float = 0.0

    def plan(self, query: str = "", **more: Any) -> Plan:
        """Requests for all images with a query."""
        kind = f"image/{self.flags.format.lower()}"
        requests = [post(f"/classify?{query}", file, kind) for file in self.files.contents]
        return Plan(self.server.host, self.server.port, requests, read_classification, **more)

    def saturate(self, query: str, connections: int, seconds: float) -> tuple[Outcome, Summary]:
        """Keep some connections busy."""
        outcome = drive(self.plan(query, connections=connections, seconds=seconds))
        if connections > 1:  # of one at a time, nothing can be late
            self.cost.add(outcome)
        return outcome, self.sum_up(outcome, outcome.lasted_s(seconds))

    def sum_up(self, outcome: Outcome, seconds: float, part: Mask | None = None) -> Summary:
        """In numbers, by the target of the flags."""
        return summarise(outcome, self.files.labels, seconds, self.flags.target_ms, part)

    def note(self, scenario: str, name: str, summary: Summary, **more: Any) -> None:
        """Print a row, and keep it."""
        report.line(name, report.cells(summary))
        self.rows.append({"scenario": scenario, "run": name} | more | asdict(summary))

    def put_budget(self, scenario: str, budget: Row) -> bool:
        """Put a budget in force; whether the service took it."""
        status, answer = self.server.ask("PUT", "/budget", budget)
        return self.accepted(scenario, f"PUT /budget {budget}", status, answer)

    def accepted(self, scenario: str, what: str, status: int, answer: Any) -> bool:
        """Whether an answer is 200; else it is told, and kept as missing."""
        if status != 200:
            said = answer.get("error", answer) if isinstance(answer, dict) else answer
            print(f"\nNOT RUN in {scenario}: {what} was answered with {status}: {said}")
            found = {"scenario": scenario, "what": what, "status": status, "said": said}
            self.missing += [] if found in self.missing else [found]
        return status == 200
