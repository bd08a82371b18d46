"""The same full network, served by others and by us: throughput, and latency at 70 % of it.

    python -m benchmarks.peers --setup [--venvs DIR] [--peers NAME ...]
    python -m benchmarks.peers --data DATA [--bundle DIR] [--venvs DIR] [--peers NAME ...]
        [--seconds S] [--rounds N] [--rate R] [--workers N] [--format PNG|JPEG] [--quick]

Each server runs the bundle's plain graph by ONNX Runtime and decodes as we do, in batches where it
has them, with a worker per core, in an environment of its own: `--setup` makes them. In every round
each is started, kept busy, given Poisson arrivals at 70 % of what it just carried, and stopped; we
are one of them, at budget 1 and at 0.25. How each is set up: benchmarks/peers_servers.

Prints a table and ends in one JSON line; whoever cannot run is named in both, and the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.load import report
from benchmarks.load.arrivals import arrivals, poisson
from benchmarks.load.generator import Plan, drive
from benchmarks.load.images import FORMATS, Files, test_images
from benchmarks.load.messages import post, read_classification
from benchmarks.load.outcome import Summary, summarise
from benchmarks.load.server import ServerError, service
from benchmarks.peers_servers.start import PEERS, Peer, Share, served, set_up
from models.bundle import Bundle, read_bundle
from service.cores import cpus
from training.config import Config

LEVEL = 0.7
# Seconds that an answer is waited for, of all servers alike.
PATIENCE_S = 60.0
FULL = "ours, budget 1"
OURS = {FULL: "budget=1", "ours, budget 0.25": "budget=0.25"}
VENVS = Path("~/.cache/runtime-neural-pruning/peers").expanduser()


@dataclass(frozen=True)
class Measured:
    """A server in one round.

    Attributes:
        full: at saturation.
        answers: (images,) the class that each was given, NaN for those that were not sent.
        level: at 70 % of what it carried.
    """

    full: Summary
    answers: npt.NDArray[np.float64]
    level: Summary


@dataclass
class Found:
    """What was measured of one server, a value a round.

    Attributes:
        rate: answers a second at saturation.
        same: share of images that are given the class which our full network gives.
        lost: requests that were not answered, at saturation and at 70 % of the rate.
        at_level: a summary at 70 % of the rate.
    """

    rate: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    at_level: list[Summary] = field(default_factory=list)

    def add(self, measured: Measured, ours: npt.NDArray[np.float64]) -> None:
        """Add a round."""
        known = ~np.isnan(measured.answers) & ~np.isnan(ours)
        self.rate.append(measured.full.answered)
        self.accuracy.append(measured.full.accuracy)
        self.same.append(float((measured.answers == ours)[known].mean()))
        self.lost.append(measured.full.lost + measured.level.lost)
        self.at_level.append(measured.level)

    def median(self, column: str) -> float:
        """Over the rounds, of a column of the summaries, or of the rate."""
        if column == "rate":
            return statistics.median(self.rate)
        return float(statistics.median(getattr(row, column) for row in self.at_level))


def measure(
    plan: Plan,
    files: Files,
    seed: int,
    flags: argparse.Namespace,
    cost: report.GeneratorCost,
) -> Measured:
    """Saturation, then 70 % of what was answered, or the rate of the flags.

    Raises:
        ServerError: it answers nothing.
    """
    busy = replace(plan, connections=flags.connections)
    drive(replace(busy, seconds=min(2.0, flags.seconds)))  # warm, not counted
    outcome = drive(replace(busy, seconds=flags.seconds))
    full = summarise(outcome, files.labels, outcome.lasted_s(flags.seconds), np.inf)
    if not full.answered:
        statuses = sorted(set(outcome.columns["status"].tolist()))
        raise ServerError(f"no request was answered with 200, but with {statuses}")
    answers = np.full(len(files.contents), np.nan)
    answers[outcome.columns["image"].astype(int)] = outcome.columns["answer"]
    times = arrivals(poisson(flags.seconds, 1.0), flags.rate or LEVEL * full.answered, seed)
    outcome = drive(replace(plan, times=times))
    cost.add(outcome)
    return Measured(full, answers, summarise(outcome, files.labels, flags.seconds, np.inf))


def run_round(
    peer: Peer | None,
    bundle: Bundle,
    files: Files,
    seed: int,
    flags: argparse.Namespace,
    cost: report.GeneratorCost,
) -> Iterator[tuple[str, Measured]]:
    """One server in one round; ours, if there is no peer, at each of its budgets."""
    if peer is None:
        # Without a line for each request, as the others.
        for name, query in OURS.items():
            requests = [post(f"/classify?{query}", file, flags.kind) for file in files.contents]
            with service(bundle.path, workers=flags.workers, log_level="WARNING") as server:
                plan = Plan(
                    server.host, server.port, requests, read_classification, timeout_s=PATIENCE_S
                )
                yield name, measure(plan, files, seed, flags, cost)
        return
    requests = [post(peer.path, peer.body(file), peer.content_type) for file in files.contents]
    with served(peer, bundle, flags.venvs, flags.share) as server:
        plan = Plan(server.host, server.port, requests, peer.read, timeout_s=PATIENCE_S)
        yield peer.name, measure(plan, files, seed, flags, cost)


def measure_all(
    peers: Sequence[Peer], bundle: Bundle, files: Files, flags: argparse.Namespace
) -> tuple[report.GeneratorCost, dict[str, Found], dict[str, str]]:
    """All servers in turn, another one first in every round; and why those are missing that are."""
    cost, found, missing = report.GeneratorCost(), dict[str, Found](), dict[str, str]()
    ours = np.full(len(files.contents), np.nan)
    for round_ in range(flags.rounds):
        order = deque([None, *peers])  # ours first, with whose answers the others' are compared
        order.rotate(-round_)
        for peer in order:
            try:
                for name, one in run_round(peer, bundle, files, round_, flags, cost):
                    ours = one.answers if name == FULL else ours
                    found.setdefault(name, Found()).add(one, ours)
                    ms = f"p50 {one.level.p50_ms:.1f} ms, p99 {one.level.p99_ms:.1f} ms"
                    print(f"{round_}, {name}: {one.full.answered:.0f} a second; {ms}", flush=True)
            except ServerError as error:
                missing[peer.name if peer else "ours"] = str(error)
    return cost, found, missing


def print_table(found: dict[str, Found], rate: float | None) -> None:
    """Medians over the rounds, and what they are to the best peer's.

    Args:
        rate: requests a second at which latencies were measured, if it was the same for all.
    """
    columns = ("rate", "p50_ms", "p99_ms")
    peers = [name for name in found if name not in OURS]
    best = {
        column: (max if column == "rate" else min)(
            (found[name].median(column) for name in peers), default=float("nan")
        )
        for column in columns
    }
    ratio = "× best peer"
    at = f"at {rate:g}/s" if rate else f"at {LEVEL:.0%}"
    titles = ("answers/s", ratio, f"p50 ms {at}", ratio, f"p99 ms {at}", ratio)
    report.table("server", (*titles, "errors", "accuracy", "same class"))
    for name, values in found.items():
        cells = []
        for column in columns:
            value = values.median(column)
            cells += [f"{value:.0f}" if column == "rate" else f"{value:.1f}"]
            cells += [f"{value / best[column]:.2f}"]
        shares = (statistics.median(part) for part in (values.accuracy, values.same))
        report.line(name, [*cells, f"{sum(values.lost)}", *(f"{share:.1%}" for share in shares)])


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="folder or data set with test images")
    parser.add_argument("--setup", action="store_true", help="make the environments, then stop")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where the environments are")
    parser.add_argument("--bundle", type=Path, default=Path("models/bundles/cifar10-mcifarnet"))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rate", type=float, help="requests a second at which latencies are measured, for all"
    )
    parser.add_argument("--connections", type=int, default=64, help="that saturate a server")
    cores = cpus()
    parser.add_argument("--workers", type=int, default=cores, help="processes of each server")
    parser.add_argument("--batch", type=int, default=16, help="most images of a peer's batch")
    parser.add_argument("--cache", type=Path, default=Config().cache_dir, help="of decoded images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--format", default="PNG", choices=FORMATS)
    parser.add_argument("--quick", action="store_true", help="seconds only, to see if it runs")
    flags = parser.parse_args()
    flags.kind = f"image/{flags.format.lower()}"
    flags.share = Share(flags.workers, max(1, cores // flags.workers), flags.batch)
    if not flags.setup and not flags.data:
        parser.error("--data is needed, but with --setup")
    if flags.quick:
        flags.seconds, flags.rounds, flags.images = 2.0, 1, min(flags.images, 200)
    return flags


def main() -> int:
    """Print a table and one JSON line."""
    flags = _flags()
    peers = [PEERS[name] for name in flags.peers]
    if flags.setup:
        failed = set_up(peers, flags.venvs)
        print(json.dumps({"benchmark": "peers", "setup": True, "failed": failed}))
        return 1 if failed else 0
    bundle = read_bundle(flags.bundle)
    files = test_images(flags.data, bundle.card, flags.images, flags.format, flags.cache)
    machine = report.machine()
    print(f"{machine}; {bundle.card.name}; {flags.format}; {flags.workers} workers each, "
          f"{flags.rounds} rounds of {flags.seconds:g} s")  # fmt: skip
    cost, found, missing = measure_all(peers, bundle, files, flags)
    print_table(found, flags.rate)
    for name, reason in missing.items():
        print(f"\n{name} did NOT RUN: {reason}")
    cost.print()
    report.print_json(
        {
            "benchmark": "peers",
            "machine": machine,
            "bundle": bundle.card.name,
            "format": flags.format,
            "workers": flags.workers,
            "seconds": flags.seconds,
            "rate": flags.rate,
            "generator": cost.values(),
            "missing": missing,
            "servers": {name: asdict(values) for name, values in found.items()},
        }
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
