"""Does a budget hold when the images become harder than those of the calibration?

    python -m benchmarks.drift --data DATA [--bundle DIR] [--budgets 0.2 0.4 0.7]

Sends traffic of only the hardest fifth of the test images, by the full network's loss, through the
planner, the correction and the engine that the service uses, with the correction on and off, prints
the mean compute of every thousand images and ends in one JSON line. Exit code 1 if, after the first
3,000 images, a corrected mean is farther than 0.02 from its budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.bundle import read_bundle
from models.card import Card
from service.budget import Budget, Fixed
from service.correction import Correction
from service.engines.base import Engine, Floats, Integers
from service.engines.onnx_graph import OnnxEngine
from service.estimate import Estimate
from service.limits import Asked, Limits
from service.planner import Planner
from training.config import Config
from training.data import load_test

HARDEST, SETTLED, ALLOWED, WINDOW, BATCH = 0.2, 3000, 0.02, 1000, 8


@dataclass(frozen=True)
class Run:
    """Mean share of the full MACs in each window, and after the budget had time to settle."""

    budget: float
    corrected: bool
    windows: list[float]
    settled: float


def hardest(engine: Engine, pixels: Floats, labels: Integers) -> Integers:
    """Which images (N,) the full network is most wrong about."""
    losses = []
    for start in range(0, len(pixels), 500):
        part = slice(start, start + 500)
        rows = len(pixels[part])
        logits = engine.run(pixels[part], np.zeros(rows, np.float32), np.ones(rows)).logits
        shifted = logits - logits.max(axis=1, keepdims=True)
        picked = shifted[np.arange(rows), labels[part]]
        losses.append(np.log(np.exp(shifted).sum(axis=1)) - picked)
    order = np.argsort(-np.concatenate(losses), kind="stable")
    return order[: round(HARDEST * len(order))]


def run(
    engine: Engine, card: Card, pixels: Floats, budget: float, images: int, *, corrected: bool
) -> Run:
    """Send images (N, 3, H, W), drawn at random, as requests for a budget."""
    correction = Correction(on=corrected)
    planner = Planner(card, Budget(Fixed(budget)), Estimate(), correction, max_batch=BATCH)
    rng, full, spent = np.random.default_rng(0), card.table().full, []
    for _ in range(images // BATCH):
        planned = planner.plan([Asked(0, budget)] * BATCH, 0).limits
        limits = [limit for limit in planned if isinstance(limit, Limits)]
        penalty = np.array([limit.penalty for limit in limits], np.float32)
        rows = rng.integers(len(pixels), size=BATCH)
        macs = engine.run(pixels[rows], penalty, np.full(BATCH, np.inf)).macs
        planner.learn(limits, macs.tolist(), 1.0)
        spent.append(macs / full)
    shares = np.concatenate(spent)
    windows = [float(shares[at : at + WINDOW].mean()) for at in range(0, len(shares), WINDOW)]
    return Run(budget, corrected, windows, float(shares[SETTLED:].mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/bundles/cifar10-mcifarnet"))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.2, 0.4, 0.7])
    parser.add_argument("--images", type=int, default=6000, help="requests of each run")
    parser.add_argument("--cache", type=Path, default=Config().cache_dir)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags = parser.parse_args()
    if flags.images % WINDOW or flags.images <= SETTLED:
        parser.error(f"--images must be a multiple of {WINDOW} above {SETTLED}")
    bundle = read_bundle(flags.bundle)
    card = bundle.card
    images = load_test(flags.data, card.preprocessing, names=card.labels, cache=flags.cache)
    pixels = card.preprocessing.normalise(images.take(slice(0, len(images))))
    engine = OnnxEngine(bundle, threads=flags.threads)
    hard = pixels[hardest(engine, pixels, np.asarray(images.labels))]
    print(f"{card.name}: {flags.images} requests, drawn from the hardest {len(hard)} of "
          f"{len(pixels)} test images\n")  # fmt: skip
    head = "| ".join(f"to {n * WINDOW} " for n in range(1, flags.images // WINDOW + 1))
    print(f"| budget | corrected | {head}| after {SETTLED} |")
    print("|---" * (flags.images // WINDOW + 3) + "|")
    runs = []
    for budget in flags.budgets:
        for corrected in (False, True):
            one = run(engine, card, hard, budget, flags.images, corrected=corrected)
            cells = " | ".join(f"{mean:.3f}" for mean in one.windows)
            print(f"| {budget:g} | {'yes' if corrected else 'no'} | {cells} | {one.settled:.3f} |",
                  flush=True)  # fmt: skip
            runs.append(one)
    good = all(abs(one.settled - one.budget) <= ALLOWED for one in runs if one.corrected)
    report = {"benchmark": "drift", "bundle": card.name, "digest": bundle.digest, "good": good}
    print(json.dumps(report | {"runs": [asdict(one) for one in runs]}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
