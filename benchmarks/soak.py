"""Does the service last, and does it bear what goes wrong?

    python -m benchmarks.soak --data DATA [--bundle DIR] [--minutes M] [--level L] [--target-ms T]
    python -m benchmarks.soak --data DATA --chaos [--items NAME ...] [--seconds S]

Without `--chaos`: Poisson arrivals at a share of what the service carries, for half an hour; how
its memory goes with the requests answered, and what was not answered. With it: kill −9 and SIGTERM
under load, bundles loaded anew, clients that hang up, slow bodies, a full cache or disk, a
corrupted bundle.

Prints a verdict for each item and ends in one JSON line; the exit code is 1 if one is bad.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.load import report
from benchmarks.load.arrivals import Floats, arrivals, poisson
from benchmarks.load.aside import every
from benchmarks.load.chaos import ITEMS, Case, Verdict
from benchmarks.load.generator import Plan, drive, driving
from benchmarks.load.images import Files, read_card, test_images
from benchmarks.load.messages import post, read_classification
from benchmarks.load.outcome import Outcome, summarise
from benchmarks.load.server import Server, service
from training.config import Config

CONNECTIONS = 64
# Memory grows at first, as caches fill and pools of threads start.
WARM_SHARE = 0.5
SAMPLES = 400
# Memory is printed at so many times.
PRINTED = 6


def measure_rate(bundle: Path, files: Files, seconds: float, workers: int) -> float:
    """Answers a second that the service carries at its default budget."""
    with service(bundle, workers=workers) as server:
        plan = _plan(server, files, seconds=seconds, connections=CONNECTIONS)
        outcome = drive(plan)
    return float(outcome.ok.sum() / outcome.lasted_s(seconds))


def soak(bundle: Path, files: Files, rate: float, flags: argparse.Namespace) -> list[Verdict]:
    """Load for a time; verdicts of answers and of memory."""
    seconds = 60 * flags.minutes
    times = arrivals(poisson(seconds, 1.0), rate, seed=0)
    auto = {"target_p95_ms": flags.target_ms} if flags.target_ms else {}
    with (
        service(bundle, workers=flags.workers, **auto) as server,
        driving(_plan(server, files, times=times)) as load,
        _weighing(server, seconds / SAMPLES) as samples,
    ):
        outcome = load.result()
    summary = summarise(outcome, files.labels, seconds, np.inf)
    report.table("", report.HEADER)
    report.line("soak", report.cells(summary))
    said = f"{summary.lost} of {len(outcome)} not answered: {summary.refused} refused, "
    said += f"{summary.late} late, {summary.errors} errors"
    answers = Verdict("answers", not summary.lost, said, asdict(summary))
    at = np.array([moment for moment, _ in samples]) - outcome.start
    return [answers, memory(outcome, at, np.array([size for _, size in samples]), flags.most_mb)]


def memory(outcome: Outcome, at_s: Floats, size_bytes: Floats, most_mb: float) -> Verdict:
    """How memory goes with the requests answered, after a warm time.

    Args:
        at_s, size_bytes: samples, (N,) each.
        most_mb: growth per 10,000 requests that is no leak.
    """
    answered = np.searchsorted(np.sort(outcome.columns["done"][outcome.ok]), at_s)
    mb = size_bytes / 1e6
    warm = at_s >= WARM_SHARE * at_s[-1]
    slope = float(np.polyfit(answered[warm] / 1e4, mb[warm], 1)[0])
    report.table("seconds", ("answered", "memory, MB"))
    for place in np.linspace(0, len(mb) - 1, PRINTED).astype(int):
        report.line(f"{at_s[place]:.0f}", (f"{answered[place]}", f"{mb[place]:.1f}"))
    said = (
        f"{slope:+.2f} MB per 10,000 requests, {mb[0]:.0f} MB at first, {mb[warm][0]:.0f} MB warm, "
        f"{mb[-1]:.0f} MB in the end, at most {mb.max():.0f} MB"
    )
    values = {"slope_mb_per_10k": slope, "first_mb": mb[0], "last_mb": mb[-1], "most_mb": mb.max()}
    return Verdict("memory", slope <= most_mb, said, {k: float(v) for k, v in values.items()})


@contextmanager
def _weighing(server: Server, every_s: float) -> Iterator[list[tuple[float, int]]]:
    """(clock, bytes) while the context lasts."""
    found: list[tuple[float, int]] = []
    with every(every_s, lambda: found.append((time.perf_counter(), server.memory_bytes()))):
        yield found


def _plan(server: Server, files: Files, **more: object) -> Plan:
    requests = [post("/classify", file, "image/png") for file in files.contents]
    return Plan(server.host, server.port, requests, read_classification, **more)  # type: ignore[arg-type]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder or data set with test images")
    parser.add_argument("--bundle", type=Path, default=Path("models/bundles/cifar10-mcifarnet"))
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--level", type=float, default=0.6, help="share of what it carries")
    parser.add_argument("--target-ms", type=float, help="of the auto mode; else it is fixed")
    parser.add_argument("--most-mb", type=float, default=0.5, help="growth per 10,000 requests")
    parser.add_argument("--chaos", action="store_true", help="what goes wrong, instead of a soak")
    parser.add_argument("--items", nargs="+", default=list(ITEMS), choices=ITEMS)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load, for an item of chaos")
    parser.add_argument("--saturation-s", type=float, default=10.0)
    parser.add_argument("--cache", type=Path, default=Config().cache_dir, help="of decoded images")
    parser.add_argument("--images", type=int, default=1000)
    return parser.parse_args()


def main() -> int:
    """Print verdicts and one JSON line."""
    flags = _flags()
    files = test_images(flags.data, read_card(flags.bundle), flags.images, "PNG", flags.cache)
    machine = report.machine()
    carried = measure_rate(flags.bundle, files, flags.saturation_s, flags.workers)
    rate = flags.level * carried
    print(f"{machine}; {flags.bundle.name} carries {carried:.0f} a second at its default "
          f"budget with {flags.workers} workers; {rate:.0f} are sent", flush=True)  # fmt: skip
    if flags.chaos:
        case = Case(flags.bundle, files, rate, flags.seconds, flags.workers)
        verdicts = [ITEMS[item](case) for item in flags.items]
    else:
        verdicts = soak(flags.bundle, files, rate, flags)
    report.table("item", ("verdict", "what was seen"))
    for verdict in verdicts:
        report.line(verdict.item, ("good" if verdict.good else "BAD", verdict.said))
    name = "chaos" if flags.chaos else "soak"
    report.print_json(
        {
            "benchmark": name,
            "machine": machine,
            "bundle": flags.bundle.name,
            "workers": flags.workers,
            "rate": rate,
            "good": all(verdict.good for verdict in verdicts),
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
    )
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
