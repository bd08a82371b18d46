"""The service under load: what it carries, what it adds, what a budget that follows load gains.

    python -m benchmarks.http --data DATA [--bundle DIR] [--scenario NAME ...] [--shapes NAME ...]
        [--seconds S] [--target-ms T] [--floor F] [--deadline-ms D] [--pictures DIR] [--quick]

Starts `python -m service` and sends it test images as files, over sockets, from a process of its
own. But for saturation the loop is open: arrivals are drawn ahead, from a rate that is a multiple
of what the full network can carry, and latency counts from when a request was *due*.

capacity       answers a second at saturation, by budget
overhead       one request at a time: what the service adds to decoding and inference
fixed-vs-auto  the same arrivals at budget 1 and at a budget that follows the load
deadline       requests with `deadline_ms`, at 0.9 of capacity

Prints tables and ends in one JSON line. What the service refuses to do is named in both, and the
exit code is then 1. docs/serving.md says more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.load import report
from benchmarks.load.arrivals import SHAPES, Phase, arrivals, poisson, within
from benchmarks.load.bench import Bench
from benchmarks.load.generator import drive
from benchmarks.load.images import FORMATS, read_card, test_images
from benchmarks.load.outcome import LATE, REFUSED, Course, Outcome, over_time, percentiles
from benchmarks.load.picture import draw
from benchmarks.load.server import ServerError, service
from training.config import Config

FULL: dict[str, object] = {"mode": "fixed", "budget": 1}
DEADLINE_LEVEL = 0.9
# How long a change of mode settles.
SETTLE_S = 1.0
POINTS = 120
# What cannot be: at so many times capacity, such a share within the target at a fixed budget.
NO_LOAD = (1.5, 0.9)


def capacity(bench: Bench) -> None:
    """Saturation at each budget, in turn."""
    flags = bench.flags
    print(f"\nCapacity: {flags.connections} connections kept busy for {flags.saturation_s:g} s")
    report.table("budget", report.HEADER)
    answered: dict[float, list[float]] = {budget: [] for budget in flags.budgets}
    for round_ in range(flags.rounds):
        for budget in flags.budgets:
            query = f"budget={budget:g}"
            _, found = bench.saturate(query, flags.connections, flags.saturation_s)
            bench.note("capacity", f"{budget:g}", found, budget=budget, round=round_)
            answered[budget].append(found.answered)
    medians = {budget: statistics.median(values) for budget, values in answered.items()}
    bench.full = medians[1.0]
    gains = [f"{rate / bench.full:.2f} × at {budget:g}" for budget, rate in medians.items()]
    print(f"\nThe full network: {bench.full:.0f} a second (median). Against it: {', '.join(gains)}")


def full_capacity(bench: Bench) -> float:
    """Answers a second that the full network carries, measured if that was not done."""
    if not bench.full:
        capacity(bench)
    return bench.full


def overhead(bench: Bench) -> None:
    """One request at a time: medians of what the server says of each, and of what we see."""
    flags = bench.flags
    print("\nOverhead: one request at a time, so every batch is of one image; medians in ms")
    report.table("budget", ("requests", "decode", "inference", "total", "overhead", "seen here"))
    for round_ in range(flags.rounds):
        for budget in (max(flags.budgets), min(flags.budgets)):
            outcome, found = bench.saturate(f"budget={budget:g}", 1, flags.saturation_s)
            own = [outcome.columns[f"{part}_ms"][outcome.ok] for part in ("decode", "inference")]
            total = outcome.columns["total_ms"][outcome.ok]
            values = [percentiles(part)[0] for part in (*own, total)]
            ms = [*values, found.overhead_ms, found.p50_ms]
            report.line(f"{budget:g}", [f"{found.requests}", *(f"{value:.2f}" for value in ms)])
            names = ("decode_p50_ms", "inference_p50_ms", "total_p50_ms")
            more = dict(zip(names, values, strict=True)) | {"budget": budget, "round": round_}
            bench.rows.append({"scenario": "overhead", "run": f"{budget:g}"} | more | asdict(found))


def fixed_vs_auto(bench: Bench) -> None:
    """The same arrivals at both modes, each shape in turn."""
    flags, full = bench.flags, full_capacity(bench)
    auto = {"mode": "auto", "target_p95_ms": flags.target_ms, "floor": flags.floor}
    modes: list[tuple[str, dict[str, object]]] = [("fixed", FULL), ("auto", auto)]
    for shape in flags.shapes:
        phases = SHAPES[shape](flags.day_seconds if shape == "day" else flags.seconds)
        seconds = sum(phase.seconds for phase in phases)
        print(f"\nFixed against auto, {shape}, {seconds:g} s, target {flags.target_ms:g} ms")
        report.table("mode", report.HEADER)
        for round_ in range(flags.rounds):
            times = arrivals(phases, full, seed=round_)
            plan = bench.plan(times=times)
            courses: dict[str, Course] = {}
            # Each goes first as often as the other, as the machine may change meanwhile.
            for mode, budget in modes[:: -1 if round_ % 2 else 1]:
                if bench.put_budget("fixed-vs-auto", budget):
                    time.sleep(SETTLE_S)
                    outcome = drive(plan)
                    bench.cost.add(outcome)
                    step_s = max(seconds / POINTS, 0.5)
                    courses[mode] = over_time(outcome, seconds, step_s, flags.target_ms)
                    _note_parts(bench, shape, mode, round_, phases, outcome)
            if flags.pictures and not round_:
                flags.pictures.mkdir(parents=True, exist_ok=True)
                path = flags.pictures / f"load-{shape}.png"
                title = f"{flags.bundle.name}, {shape}: budget 1, and one that follows the load"
                draw(courses, full, flags.target_ms, title, path)
        _print_ratios(bench, shape)
    bench.put_budget("fixed-vs-auto", FULL)


def _note_parts(
    bench: Bench, shape: str, mode: str, round_: int, phases: list[Phase], outcome: Outcome
) -> None:
    """A row of the whole run, and one of each kind of phase where a few repeat or differ."""
    more = {"shape": shape, "mode": mode, "round": round_}
    total = sum(phase.seconds for phase in phases)
    bench.note("fixed-vs-auto", mode, bench.sum_up(outcome, total), part="all", **more)
    names = list(dict.fromkeys(phase.name for phase in phases))
    if 1 < len(names) <= 6:
        for name in names:
            part = within(phases, name, outcome.columns["due"])
            seconds = sum(phase.seconds for phase in phases if phase.name == name)
            summary = bench.sum_up(outcome, seconds, part)
            bench.note("fixed-vs-auto", f"{mode}, {name}", summary, part=name, **more)
            level = max(phase.level for phase in phases if phase.name == name)
            if mode == "fixed" and level >= NO_LOAD[0] and summary.within > NO_LOAD[1]:
                print(f"\n{level:g} × capacity was no load: capacity was measured too low. Was the "
                      "machine busy?")  # fmt: skip


def _print_ratios(bench: Bench, shape: str) -> None:
    rows = [row for row in bench.rows if row.get("shape") == shape]
    for part in dict.fromkeys(row["part"] for row in rows):
        kept = {
            mode: [row["within"] for row in rows if (row["part"], row["mode"]) == (part, mode)]
            for mode in ("fixed", "auto")
        }
        if kept["auto"]:
            fixed, auto = (statistics.median(values) for values in kept.values())
            ratio = auto / fixed if fixed else float("nan")
            print(f"{shape}, {part}: within the target {fixed:.1%} fixed, {auto:.1%} auto, "
                  f"ratio {ratio:.2f}")  # fmt: skip
            bench.rows.append({"scenario": "ratio", "shape": shape, "part": part, "ratio": ratio})


def deadline(bench: Bench) -> None:
    """Requests that must be done in time, at budget 1 unless that takes too long."""
    flags, limit = bench.flags, bench.flags.deadline_ms
    query = f"deadline_ms={limit:g}"
    probe = drive(bench.plan(query, times=np.zeros(1))).columns["status"][0]
    what = f"POST /classify?{query}"
    full = full_capacity(bench)
    if not bench.put_budget("deadline", FULL):
        return
    if not bench.accepted("deadline", what, int(probe), "see the service's /docs"):
        return
    phases = poisson(flags.seconds, DEADLINE_LEVEL)
    print(f"\nDeadline {limit:g} ms, {DEADLINE_LEVEL} of capacity, {flags.seconds:g} s")
    report.table("round", report.HEADER)
    for round_ in range(flags.rounds):
        outcome = drive(bench.plan(query, times=arrivals(phases, full, seed=round_)))
        bench.cost.add(outcome)
        kept = _kept(outcome, limit)
        summary = bench.sum_up(outcome, flags.seconds)
        bench.note("deadline", f"{round_}", summary, round=round_, deadline_ms=limit, **kept)
        print(
            f"kept: {kept['of_answered']:.2%} of the answered by the server's clock, "
            f"{kept['of_answered_here']:.2%} by ours from when they were due; "
            f"{kept['of_accepted']:.2%} of the accepted, where {kept['turned_away']:.2%} were "
            f"turned away at once and {kept['passed_504']:.0f} were told that it took longer"
        )


def _kept(outcome: Outcome, limit_ms: float) -> dict[str, float]:
    """Shares of requests that were done in time."""
    ok, status = outcome.ok, outcome.columns["status"]
    in_time = outcome.columns["total_ms"][ok] <= limit_ms
    here = outcome.latency_ms[ok] <= limit_ms
    turned_away = (status == REFUSED) | (outcome.columns["unreachable"] == 1)
    return {
        "of_answered": float(in_time.mean()) if len(in_time) else float("nan"),
        "of_answered_here": float(here.mean()) if len(here) else float("nan"),
        "of_accepted": float(in_time.sum()) / max(int((~turned_away).sum()), 1),
        "turned_away": float(turned_away.mean()),
        "passed_504": float(((status == LATE) & ~turned_away).sum()),
    }


SCENARIOS = {
    "capacity": capacity,
    "overhead": overhead,
    "fixed-vs-auto": fixed_vs_auto,
    "deadline": deadline,
}


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder or data set with test images")
    parser.add_argument("--bundle", type=Path, default=Path("models/bundles/cifar10-mcifarnet"))
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--shapes", nargs="+", default=["bursts", "steps"], choices=SHAPES)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run of any shape but day")
    parser.add_argument("--day-seconds", type=float, default=600.0, help="that a day takes")
    parser.add_argument("--saturation-s", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=64, help="that saturate the service")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--target-ms", type=float, default=50.0)
    parser.add_argument("--floor", type=float, default=0.2, help="lowest budget of the auto mode")
    parser.add_argument("--deadline-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Config().cache_dir, help="of decoded images")
    parser.add_argument("--images", type=int, default=2000, help="different ones, sent in turn")
    parser.add_argument("--format", default="PNG", choices=FORMATS)
    parser.add_argument("--pictures", type=Path, help="directory for load-<shape>.png")
    parser.add_argument("--quick", action="store_true", help="seconds only, to see if it runs")
    flags = parser.parse_args()
    if 1.0 not in flags.budgets:
        parser.error("--budgets needs 1, by which all rates are set")
    if flags.quick:
        flags.rounds, flags.images = 1, min(flags.images, 200)
        flags.seconds, flags.day_seconds = min(flags.seconds, 4.0), min(flags.day_seconds, 4.0)
        flags.saturation_s = min(flags.saturation_s, 1.0)
    return flags


def main() -> int:
    """Print tables and one JSON line."""
    flags = _flags()
    card = read_card(flags.bundle)
    files = test_images(flags.data, card, flags.images, flags.format, flags.cache)
    machine = report.machine()
    print(f"{machine}; {card.name}, {len(files.contents)} test images as {flags.format}")
    with service(flags.bundle, workers=flags.workers) as server:
        bench = Bench(server, files, flags)
        bench.saturate("", flags.connections, min(2.0, flags.saturation_s))  # warm, not counted
        for scenario in flags.scenario:
            SCENARIOS[scenario](bench)
    bench.cost.print()
    own = ("data", "cache", "pictures", "bundle")
    settings = {key: value for key, value in vars(flags).items() if key not in own}
    report.print_json(
        {
            "benchmark": "http",
            "machine": machine,
            "bundle": card.name,
            "settings": settings,
            "capacity": bench.full or None,
            "generator": bench.cost.values(),
            "missing": bench.missing,
            "rows": bench.rows,
        }
    )
    return 1 if bench.missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerError as error:
        sys.exit(f"error: {error}")
