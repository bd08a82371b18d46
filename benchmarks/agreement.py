"""Do all engines give the same answers, and does every image keep its cap?

    python -m benchmarks.agreement --data DATA [--bundle DIR] [--images N]

Runs the test images of a source through every engine at several budgets and caps, those left out
that the bundle cannot reach, prints a table and ends in one JSON line. Exit code 1 if engines
differ more, or a cap is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.bundle import Bundle, read_bundle
from service.engines.base import Engine, Result
from service.engines.onnx_graph import OnnxEngine
from service.engines.reference import TorchEngine
from training.config import Config
from training.data import Images, load_test, stratified

SAME_WIDTHS, SAME_LABEL = 0.999, 0.9995
BATCH = 500


@dataclass(frozen=True)
class Row:
    """What two engines agree on, at one budget and cap."""

    budget: float
    cap: float | None
    same_widths: float
    same_label: float
    largest_logit_difference: float
    mean_fraction: float
    largest_fraction: float

    @property
    def good(self) -> bool:
        """Whether the engines agree and every image keeps its cap."""
        agree = self.same_widths >= SAME_WIDTHS and self.same_label >= SAME_LABEL
        return agree and (self.cap is None or self.largest_fraction <= self.cap)


def compare(
    bundle: Bundle, engines: list[Engine], images: Images, budget: float, cap: float | None
) -> Row:
    """Run all images through both engines."""
    first, second = (run(engine, bundle, images, budget, cap) for engine in engines)
    same = (first.widths == second.widths).all(axis=1)
    fractions = np.maximum(first.macs, second.macs) / bundle.card.table().full
    return Row(
        budget,
        cap,
        float(same.mean()),
        float((first.logits.argmax(1) == second.logits.argmax(1)).mean()),
        float(np.abs(first.logits - second.logits)[same].max(initial=0)),
        float(fractions.mean()),
        float(fractions.max()),
    )


def run(engine: Engine, bundle: Bundle, images: Images, budget: float, cap: float | None) -> Result:
    """All images through one engine, in batches."""
    results = []
    for start in range(0, len(images), BATCH):
        pixels = bundle.card.preprocessing.normalise(images.take(slice(start, start + BATCH)))
        penalty = np.full(len(pixels), bundle.card.penalty(budget), np.float32)
        caps = np.full(len(pixels), np.inf if cap is None else cap)
        results.append(engine.run(pixels, penalty, caps))
    logits, widths, macs = (
        np.concatenate([getattr(result, part) for result in results])
        for part in ("logits", "widths", "macs")
    )
    return Result(logits, widths, macs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/bundles/cifar10-mcifarnet"))
    parser.add_argument("--images", type=int, default=0, help="0 for all")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.8, 0.95])
    parser.add_argument("--caps", type=float, nargs="+", default=[0.12, 0.2, 0.35, 0.5, 0.75])
    parser.add_argument("--cache", type=Path, default=Config().cache_dir)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags = parser.parse_args()
    bundle = read_bundle(flags.bundle)
    card = bundle.card
    images = load_test(flags.data, card.preprocessing, names=card.labels, cache=flags.cache)
    # Folders list their images class by class: the first ones would be of the first classes.
    images = images.subset(stratified(images.labels, flags.images or len(images), 0))
    engines: list[Engine] = [
        TorchEngine(bundle, threads=flags.threads),
        OnnxEngine(bundle, threads=flags.threads),
    ]
    print(f"{card.name}, {len(images)} test images, {engines[0].name} and {engines[1].name}\n")
    print("| budget | cap | same widths | same label | largest logit difference "
          "| mean compute | largest compute |\n|---|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    cases: list[tuple[float, float | None]]
    cases = [(budget, None) for budget in flags.budgets if budget >= card.min_fraction]
    cases += [(0.8, cap) for cap in flags.caps if cap >= card.min_cap]
    for budget, cap in cases:
        row = compare(bundle, engines, images, budget, cap)
        limit = "" if cap is None else f"{cap:g}"
        print(f"| {budget:g} | {limit} | {row.same_widths:.3%} | {row.same_label:.3%} "
              f"| {row.largest_logit_difference:.1e} | {row.mean_fraction:.3f} "
              f"| {row.largest_fraction:.4f} |", flush=True)  # fmt: skip
        rows.append(row)
    good = bool(rows) and all(row.good for row in rows)
    report = {"benchmark": "agreement", "bundle": card.name, "digest": bundle.digest}
    rest = {"images": len(images), "good": good, "rows": [asdict(row) for row in rows]}
    print(json.dumps(report | rest))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
