"""All that needs a GPU, in one go: are the kernels right, how fast are they, does the host wait?

    python -m benchmarks.gpu_check [--out DIR] [--networks NAME ...] [--batches N ...]
        [--rivals NAME ...] [--rounds N] [--rehearse]

0. Compilation, which takes longest: every kernel with every tile, on all cores at once.
1. Correctness: the tests of the kernels and of captured training, compiled; then the engine at full
   size beside the reference, in float32 and in bfloat16.
2. Benchmark: at several budgets and batches, on the GPU's clock, against the full network by
   cuDNN in a CUDA graph and by torch.compile with max-autotune. Weights are random, and caps make
   the rows spend the budget.
3. Profiles: what the host calls while a batch is computed.

Each writes a JSON file as soon as it is done, and the last line is one too. With `--rehearse` all
of it runs on the CPU, in Triton's interpreter and at toy size, up to the first call of CUDA, and
the kernels are compiled, which needs no GPU; nothing is timed and nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from benchmarks.measure.gpu_compile import compile_all
from benchmarks.measure.gpu_subjects import (
    NETWORKS,
    TOY,
    bundle_of,
    engine_of,
    rivals,
)
from benchmarks.measure.work import noise

if TYPE_CHECKING:
    from models.bundle import Bundle
    from service.engines.base import Floats, Result
    from service.engines.triton_engine import TritonEngine

BUDGETS = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 10)
BATCHES = (1, 8, 32)
RIVALS = {"cudnn": "cuDNN", "compiled": "torch.compile"}
# Images over which a budget is met where a batch is smaller; images of a comparison.
ROWS, COMPARED = 32, 16
# Most that logits may differ, as a share of the largest.
LIMITS = {"float32": 1e-3, "bfloat16": 5e-2}
# What makes the host wait for the GPU.
WAITS = ("Synchronize", "cudaMemcpy", "cudaEventQuery", "cudaStreamQuery")
NO_GPU = (
    "gpu-check: torch finds no CUDA GPU here, so nothing was checked; "
    "`python -m benchmarks.gpu_check --rehearse` runs what a CPU can"
)


@dataclass(frozen=True)
class Agreement:
    """An engine beside the reference, on rows whose caps settle their paths."""

    network: str
    dtype: str
    same_widths: float
    same_macs: float
    same_label: float
    # Of the logits, as a share of the largest.
    largest_difference: float

    @property
    def good(self) -> bool:
        same = self.same_widths == self.same_macs == 1
        return same and self.largest_difference <= LIMITS[self.dtype]


def main() -> int:
    """Run all steps; 0 if the kernels are right and the host never waits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rehearse", action="store_true")
    flags = parser.parse_args()
    # Before anything imports Triton.
    os.environ["TRITON_INTERPRET"] = "1" if flags.rehearse else "0"
    if flags.rehearse:
        flags.networks, flags.batches, flags.budgets = [TOY], [2], [1.0, 1 / 4]
    else:
        flags.budgets = list(BUDGETS)
        import torch

        if not torch.cuda.is_available():
            sys.exit(NO_GPU)
        compile_all(flags)
    correct = keep(flags, "correctness", correctness(flags))
    keep(flags, "benchmark", benchmark(flags))
    if flags.rehearse:
        compiled = [sys.executable, "-m", "benchmarks.measure.compiled"]
        subprocess.run(compiled, env=os.environ | {"TRITON_INTERPRET": "0"}, check=True)
        print("not rehearsed: running compiled kernels, CUDA graphs, tiles, timing, profiles")
        print(json.dumps({"benchmark": "gpu_check", "rehearsal": True, "good": correct["good"]}))
        return 0 if correct["good"] else 1
    profiled = keep(flags, "profiles", profiles(flags))
    good = correct["good"] and profiled["good"]
    print(json.dumps({"benchmark": "gpu_check", "machine": machine(), "good": good}))
    return 0 if good else 1


def keep(flags: argparse.Namespace, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write what a step found, unless this is a rehearsal."""
    if not flags.rehearse:
        flags.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), **found}, indent=1)
        (flags.out / f"gpu-{name}.json").write_text(text + "\n")
    return found


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    import torch
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": triton.__version__,
    }


def correctness(flags: argparse.Namespace) -> dict[str, Any]:
    """The tests of the kernels, and the engine beside the reference."""
    from service.costs import rows_at
    from service.engines.reference import TorchEngine

    tests = run_tests()
    print(f"tests of the kernels: {tests}\n")
    print("| network | numbers | same widths | same label | largest difference |\n"
          "|---|---|---|---|---|")  # fmt: skip
    rows, n = [], 4 if flags.rehearse else COMPARED
    for name in flags.networks:
        bundle = bundle_of(name)
        asked = [rows_at(bundle.card.table(), budget, n) for budget in (1.0, 0.3)]
        penalty, cap = (np.concatenate([part[i] for part in asked]) for i in (0, 1))
        images = noise(bundle, len(cap))
        wanted = TorchEngine(bundle).run(images, penalty, cap)
        for dtype in LIMITS:
            result = engine_of(flags, bundle, dtype, n).run(images, penalty, cap)
            rows.append(agreement(name, dtype, result, wanted))
            row = rows[-1]
            print(f"| {name} | {dtype} | {row.same_widths:.1%} | {row.same_label:.1%} "
                  f"| {row.largest_difference:.1e} |", flush=True)  # fmt: skip
    good = tests["failed"] == 0 and tests["passed"] > 0 and all(row.good for row in rows)
    return {"good": good, "tests": tests, "engine": [asdict(row) for row in rows]}


def agreement(name: str, dtype: str, result: Result, wanted: Result) -> Agreement:
    """Compare two results of the same rows."""
    return Agreement(
        name,
        dtype,
        float((result.widths == wanted.widths).all(axis=1).mean()),
        float((result.macs == wanted.macs).mean()),
        float((result.logits.argmax(1) == wanted.logits.argmax(1)).mean()),
        float(np.abs(result.logits - wanted.logits).max() / np.abs(wanted.logits).max()),
    )


def run_tests() -> dict[str, int]:
    """Run the tests of the kernels as this process would run them; how many passed and failed."""
    kernels = sorted(str(path) for path in Path("tests/service/engines").glob("test_triton_*.py"))
    tests = [*kernels, "tests/training/test_backward.py"]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        # They need no fixtures of others, and another torch's warnings are no failures.
        options = ["-q", "--noconftest", "-W", "default", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        subprocess.run(command, check=False)
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "errors", "failures", "skipped")}
    failed = counts["errors"] + counts["failures"]
    passed = counts["tests"] - failed - counts["skipped"]
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}


def benchmark(flags: argparse.Namespace) -> dict[str, Any]:
    """Time the engine and its rivals on every network and batch."""
    named = [] if flags.rehearse else flags.rivals
    print("\n| network | batch | budget | ms an image | saving in MACs | "
          + "".join(f"ms by {RIVALS[rival]} | saving in time over it | " for rival in named)
          + "\n|" + "---|" * (5 + 2 * len(named)))  # fmt: skip
    rows = []
    for name in flags.networks:
        bundle = bundle_of(name)
        engine = engine_of(flags, bundle, "bfloat16", *flags.batches)
        for batch in flags.batches:
            rows += time_batch(flags, name, bundle, engine, batch)
    return {"rounds": flags.rounds, "rows": rows}


def time_batch(
    flags: argparse.Namespace, name: str, bundle: Bundle, engine: TritonEngine, batch: int
) -> list[dict[str, Any]]:
    """Rows of one network and batch, the medians of the rounds."""
    from service.costs import batches, rows_at

    n = batch * (1 if flags.rehearse else max(ROWS // batch, 1))
    images, fractions = noise(bundle, n), {}
    works: dict[object, list[tuple[Callable[[], object], Callable[[], object]]]] = {}
    for budget in flags.budgets:
        penalty, cap, fractions[budget] = rows_at(bundle.card.table(), budget, n)
        parts = [(images[p], penalty[p], cap[p]) for p in batches(n, batch)]
        works[budget] = [engine_part(engine, *part) for part in parts]
    found = rivals(flags, bundle, images[:batch])
    for rival, run in found.items():
        works[rival] = [(lambda: None, run)] * (n // batch)
    if flags.rehearse:
        for before, work in itertools.chain(*works.values()):
            before()
            work()
        print(f"| {name} | {batch} | every part ran once, untimed |")
        return []
    from benchmarks.measure.gpu import device_ms

    ms = {key: float(np.median(times)) / n for key, times in device_ms(works, flags.rounds).items()}
    rows = []
    for budget in flags.budgets:
        over = {rival: ms[rival] / ms[budget] for rival in found}
        saving = 1 / fractions[budget]
        cells = [f"{ms[rival]:.4f} | {over[rival]:.2f}" for rival in found]
        print(f"| {name} | {batch} | {budget:.3g} | {ms[budget]:.4f} | {saving:.2f} | "
              + " | ".join(cells) + " |", flush=True)  # fmt: skip
        rows.append(
            {
                "network": name,
                "batch": batch,
                "budget": budget,
                "fraction": fractions[budget],
                "ms_per_image": ms[budget],
                "rival_ms_per_image": {rival: ms[rival] for rival in over},
                "mac_saving": saving,
                "time_saving": over,
                "ratio": {rival: value / saving for rival, value in over.items()},
            }
        )
    return rows


def engine_part(
    engine: TritonEngine, images: Floats, penalty: Floats, cap: Floats
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What loads a batch, and what computes it."""
    batch = engine.load(images, penalty, cap)
    return (lambda: engine.load(images, penalty, cap)), batch.compute


def profiles(flags: argparse.Namespace) -> dict[str, Any]:
    """Trace a batch of each network, and list what the host calls while it is computed."""
    found = [profile(flags, name) for name in flags.networks]
    # A profiler that recorded no call saw no wait either.
    good = all(row["calls"] and row["waits"] == 0 for row in found)
    return {"good": good, "rows": found}


def profile(flags: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trace one batch; the trace is kept for chrome://tracing."""
    import torch
    from torch.profiler import ProfilerActivity, record_function

    from service.costs import rows_at

    bundle, batch = bundle_of(name), max(flags.batches)
    engine = engine_of(flags, bundle, "bfloat16", batch)
    penalty, cap, _ = rows_at(bundle.card.table(), 1 / 4, batch)
    loaded = engine.load(noise(bundle, batch), penalty, cap)
    loaded.compute()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        with record_function("compute"):
            loaded.compute()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(flags.out / f"gpu-trace-{name}.json"))
    events = profiler.events() or []
    (span,) = [e.time_range for e in events if e.name == "compute" and "CPU" in str(e.device_type)]
    called = [
        event.name
        for event in events
        if event.name.startswith("cu") and span.start <= event.time_range.start <= span.end
    ]
    waits = sum(any(wait in call for wait in WAITS) for call in called)
    kernels = sum("CUDA" in str(event.device_type) for event in events)
    print(f"{name}, batch {batch}: the host calls {sorted(set(called))}, and waits {waits} times")
    return {"network": name, "batch": batch, "calls": called, "waits": waits, "kernels": kernels}


if __name__ == "__main__":
    sys.exit(main())
