"""How much of what an engine saves in MACs does it save in time?

    python -m benchmarks.engines [--networks NAME ...] [--engines KIND ...] [--threads N ...]
        [--batches N ...] [--rows N] [--rounds N] [--seconds S] [--clock wall|processor]
        [--picture PNG] [--check-costs] [--processes N] [--quick]

Each engine runs each network at several budgets and batches, in turn with the fastest ways known to
run the full network, which has no agent, on as many threads; a ratio is that of one round. Weights
are random, and caps make the rows spend the budget: of all mixtures of the agent's paths the most
even one. A batch is timed together with its agent, all copies and choices included.

On a machine that others use too, `--clock processor --threads 1` counts the processor's time
instead, which tells what one core would do if it were free; of several cores only a quiet machine
can tell.

Prints a table (median, quartiles) and ends in one JSON line. With `--check-costs` also what the
service would have foretold at its start, and how far off that was. With `--processes N`, instead of
all that: how many more images N processes of one thread each answer at once than one alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.measure.bundles import random_bundle
from benchmarks.measure.floor import peak_macs, read_bytes
from benchmarks.measure.picture import draw
from benchmarks.measure.processes import Throughput
from benchmarks.measure.processes import measure as measure_processes
from benchmarks.measure.processor import processor_name
from benchmarks.measure.rivals import Rival, full_networks
from benchmarks.measure.row import Forecast, Full, Row
from benchmarks.measure.timing import Spread, in_turn
from benchmarks.measure.work import KINDS, at_budget, engine_of, noise
from models.bundle import Bundle
from service import costs
from service.cores import cpus
from service.engines.base import Engine, Floats
from service.estimate import Estimate

# By name: backbone, classes, side of the images in pixels.
NETWORKS = {
    "mcifarnet-32": ("mcifarnet", 10, 32),
    "vgg16-32": ("vgg16", 10, 32),
    "resnet18-160": ("resnet18", 10, 160),
    "vgg16-224": ("vgg16", 1000, 224),
}
BUDGETS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 10)
BATCHES = (1, 8, 32)
# Images that a budget is met over, at least.
ROWS = 16
# Networks of which fewer have to do, or they would take most of the time.
LARGE = ("vgg16-224",)
LARGE_BATCHES, LARGE_ROWS = (1, 8), 8
# With `--processes`.
PROCESS_BATCHES, PROCESS_BUDGETS = (1, 8), (1.0, 1 / 4, 1 / 10)
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Case:
    """An engine with its threads, and what the service would foretell of it at its start."""

    threads: int
    engine: Engine
    estimate: Estimate


class Found(NamedTuple):
    """What was measured."""

    full: list[Full]
    rows: list[Row]
    forecasts: list[Forecast]

    def extend(self, more: Found) -> None:
        """Add what was measured elsewhere."""
        self.full.extend(more.full)
        self.rows.extend(more.rows)
        self.forecasts.extend(more.forecasts)


def measure(
    name: str,
    bundle: Bundle,
    cases: Sequence[Case],
    rivals: dict[str, Rival],
    batch: int,
    flags: argparse.Namespace,
) -> Found:
    """Time a network at one batch: every rival, and every engine at every budget, in turn."""
    rows, budgets, threads = max(batch, _least_rows(name, flags)), flags.budgets, cases[0].threads
    images = noise(bundle, rows)
    works: dict[tuple[object, ...], Callable[[], object]] = {}
    for rival, run in rivals.items():
        works[rival,] = _in_batches(run, images, batch)
    fractions = {}
    for case in cases:
        for budget in budgets:
            works[case, budget], fractions[budget] = at_budget(
                case.engine, bundle, images, budget, batch
            )
    seconds = in_turn(works, flags.rounds, CLOCKS[flags.clock], flags.seconds)
    ms = {key: values * 1e3 / rows for key, values in seconds.items()}
    fastest = ms[min(((rival,) for rival in rivals), key=lambda key: np.median(ms[key]))]
    work = bundle.card.table().full / 1e6
    full = [
        Full(name, rival, threads, batch, spread, work / spread.median)
        for rival, spread in ((rival, Spread.of(ms[rival,])) for rival in rivals)
    ]
    found, foretold = [], []
    for case in cases:
        for budget in budgets:
            times = ms[case, budget]
            row = _row(name, case, budget, batch, fractions[budget], times, fastest)
            found.append(row)
            seconds_each = float(case.estimate.rows(np.array(row.fraction)))
            expected = 1e3 * (case.estimate.batch() / batch + seconds_each)
            foretold.append(
                Forecast(
                    name, case.engine.name, case.threads, budget, batch, expected, row.ms.median
                )
            )
    return Found(full, found, foretold)


def _least_rows(name: str, flags: argparse.Namespace) -> int:
    least: int = flags.rows or (LARGE_ROWS if name in LARGE else ROWS)
    return least


def _row(
    name: str,
    case: Case,
    budget: float,
    batch: int,
    fraction: float,
    ms: npt.NDArray[np.float64],
    full_ms: npt.NDArray[np.float64],
) -> Row:
    return Row(
        name,
        case.engine.name,
        case.threads,
        budget,
        batch,
        fraction,
        Spread.of(ms),
        1 / fraction,
        Spread.of(full_ms / ms),
        Spread.of(full_ms / ms * fraction),
    )


def _in_batches(run: Rival, images: Floats, batch: int) -> Callable[[], object]:
    parts = [images[part] for part in costs.batches(len(images), batch)]
    return lambda: [run(part) for part in parts]


def run_network(name: str, bundle: Bundle, flags: argparse.Namespace) -> Found:
    """Time a network on every number of threads at every batch, and print its tables."""
    found = Found([], [], [])
    for threads in flags.threads:
        with tempfile.TemporaryDirectory() as scratch:
            rivals = full_networks(bundle, threads, Path(scratch))
            cases = []
            for kind in flags.engines:
                engine = engine_of(bundle, kind, threads, Path(scratch))
                known = costs.measure(engine, bundle.card, clock=CLOCKS[flags.clock])
                cases.append(Case(threads, engine, Estimate(known)))
            for batch in flags.batches or (LARGE_BATCHES if name in LARGE else BATCHES):
                part = measure(name, bundle, cases, rivals, batch, flags)
                found.extend(part)
                _print_tables(part.full, part.rows)
                if flags.check_costs:
                    _print_forecasts(part.forecasts)
    return found


def run_processes(
    name: str, build: Callable[[], Bundle], flags: argparse.Namespace
) -> list[Throughput]:
    """Compare several processes with one, and print a table."""
    print(f"\n{name}, processes: {flags.processes}, one thread each\n")
    print("| engine | batch | budget | images a second, one alone | all at once | gain |\n"
          "|---|---|---|---|---|---|")  # fmt: skip
    found, rows, batches = [], _least_rows(name, flags), flags.batches or PROCESS_BATCHES
    for kind in flags.engines:
        for row in measure_processes(
            name, build, kind, flags.processes, flags.budgets, batches, rows, flags.rounds
        ):
            found.append(row)
            print(f"| {row.engine} | {row.batch} | {row.budget:.3g} | {_spread(row.alone, '.1f')} "
                  f"| {_spread(row.together, '.1f')} | {_spread(row.gain, '.2f')} |",
                  flush=True)  # fmt: skip
    return found


def _print_tables(full: list[Full], rows: list[Row]) -> None:
    first = rows[0]
    print(f"\n{first.network}, threads: {first.threads}, batch: {first.batch}\n")
    print("| full network | ms an image | GMAC a second |\n|---|---|---|")
    for rival in full:
        print(f"| {rival.rival} | {_spread(rival.ms, '.3f')} | {rival.gmacs:.1f} |")
    print("\n| engine | threads | budget | fraction | ms an image | saving in MACs "
          "| saving in time | ratio |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        print(f"| {row.engine} | {row.threads} | {row.budget:.3g} | {row.fraction:.3f} "
              f"| {_spread(row.ms, '.3f')} | {row.mac_saving:.2f} | "
              f"{_spread(row.time_saving, '.2f')} | {_spread(row.ratio, '.2f')} |",
              flush=True)  # fmt: skip


def _print_forecasts(forecasts: list[Forecast]) -> None:
    print("\n| engine | threads | budget | batch | foretold, ms an image | measured | off by |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for row in forecasts:
        print(f"| {row.engine} | {row.threads} | {row.budget:.3g} | {row.batch} "
              f"| {row.foretold:.3f} | {row.measured:.3f} | {row.error:+.0%} |")  # fmt: skip


def _spread(value: Spread, form: str) -> str:
    return f"{value.median:{form}} ({value.low:{form}}–{value.high:{form}})"


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--engines", nargs="+", default=["onnx"], choices=KINDS)
    cores = cpus()
    parser.add_argument("--threads", type=int, nargs="+", default=[cores])
    parser.add_argument("--batches", type=int, nargs="+", help="else 1 8 32; of large networks 1 8")
    parser.add_argument("--budgets", type=float, nargs="+")
    parser.add_argument("--rows", type=int, help="least images to meet a budget with")
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument(
        "--seconds", type=float, default=45, help="after these no more rounds of a batch, beyond 3"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--check-costs", action="store_true")
    parser.add_argument("--processes", type=int, help="compare so many with one; no other tables")
    parser.add_argument("--quick", action="store_true", help="a narrow network, to see if it runs")
    parser.add_argument("--data", help=argparse.SUPPRESS)  # `make bench` gives it to all
    flags = parser.parse_args()
    if flags.clock == "processor" and flags.threads != [1]:
        parser.error("the processor's time says nothing of several threads: add --threads 1")
    if flags.processes is not None and (flags.processes < 2 or flags.clock == "processor"):
        parser.error("--processes compares 2 or more with one, by wall time")
    flags.budgets = flags.budgets or (PROCESS_BUDGETS if flags.processes else BUDGETS)
    if flags.quick:
        flags.networks, flags.batches, flags.rounds = ["mcifarnet-32"], [1, 8], 2
    return flags


def main() -> None:
    """Print tables and one JSON line."""
    flags = _flags()
    machine = f"{processor_name()}, {cpus()} cores"
    print(f"{machine}; {flags.rounds} rounds of {flags.clock} time; median (quartiles)")
    clock = CLOCKS[flags.clock]
    peak, reading = peak_macs(max(flags.threads), clock) / 1e9, read_bytes(clock) / 1e9
    print(f"a matrix product: {peak:.1f} GMAC/s; one core reads {reading:.1f} GB/s")
    found, processes = Found([], [], []), []
    for name in flags.networks:
        backbone, classes, size = NETWORKS[name]
        width = 0.125 if flags.quick else 1.0
        build = partial(random_bundle, backbone, classes, width=width, image_size=size)
        if flags.processes:
            processes += run_processes(name, build, flags)
        else:
            found.extend(run_network(name, build(), flags))
    if flags.picture:
        draw(found.rows, flags.picture)
    print(
        json.dumps(
            {
                "benchmark": "engines",
                "machine": machine,
                "rounds": flags.rounds,
                "clock": flags.clock,
                "peak_gmacs": peak,
                "read_gb_per_s": reading,
                "full": [asdict(row) for row in found.full],
                "rows": [asdict(row) for row in found.rows],
                "forecasts": [asdict(row) | {"error": row.error} for row in found.forecasts],
                "processes": [asdict(row) for row in processes],
            }
        )
    )


if __name__ == "__main__":
    main()
