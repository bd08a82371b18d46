"""Is looking at the image worth it? The agent's paths beside blind ones of equal compute.

All rivals run the same weights on the same test images:
- uniform: every layer at the same width; between two widths, a mixture of both by lot, whose
  accuracy is the mean of theirs;
- random: every image along its own random path, drawn so that the mean compute is the same;
- shuffled: the agent's own paths, each given to another image. What it loses against ours is what
  looking at the image was worth. (Nobody has to look, so it also spends less.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.bundle import Bundle, read_bundle
from models.compute import FloatArray, IntArray, path_macs
from models.network import Network
from training.batches import generator
from training.data import Images
from training.evaluation import about, at_budget, check_budgets, network_of, test_images
from training.files import write_atomic
from training.measure import Outcome, along
from training.supernet import draw_paths


@dataclass(frozen=True)
class Row:
    """Accuracies at one budget, all at the compute that ours spent.

    Attributes:
        fraction: mean share of the full MACs that ours spent, the agent included.
        paths: how many distinct paths ours took.
    """

    budget: float
    fraction: float
    ours: float
    shuffled: float
    random: float
    uniform: float
    paths: int


def compare(
    bundle_path: Path, source: str, budgets: Sequence[float], cache: Path, out: Path, seed: int
) -> None:
    """Print the table of all rivals and write it as JSON."""
    bundle = read_bundle(bundle_path)
    check_budgets(bundle.card, budgets)
    images = test_images(bundle.card, source, cache)
    network = network_of(bundle)
    rows = measure(bundle, network, images, budgets, seed)
    print(table(bundle, rows, len(images), seed))
    report = {
        **about(bundle, source, images),
        "seed": seed,
        "rows": [asdict(row) for row in rows],
    }
    write_atomic(out / "compare.json", (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report))


def measure(
    bundle: Bundle, network: Network, images: Images, budgets: Sequence[float], seed: int
) -> list[Row]:
    """Measure ours and its rivals at each budget."""
    card, rng = bundle.card, np.random.default_rng(seed)
    uniform = [
        along(network, images, card.preprocessing, uniform_path(network, width))
        for width in range(1, card.backbone.groups + 1)
    ]
    rows = []
    for number, budget in enumerate(tqdm(budgets, desc="comparison", unit="budget", disable=None)):
        ours = at_budget(network, card, images, budget)
        others = ours.widths[rng.permutation(len(images))]
        drawn = random_paths(network, len(images), ours.mean_fraction, seed + number)
        rows.append(
            Row(
                budget,
                ours.mean_fraction,
                ours.accuracy,
                along(network, images, card.preprocessing, others).accuracy,
                along(network, images, card.preprocessing, drawn).accuracy,
                mixture(uniform, ours.mean_fraction),
                len(np.unique(ours.widths, axis=0)),
            )
        )
    return rows


def uniform_path(network: Network, width: int) -> IntArray:
    """(1, L), every layer at one width but the first, which is never pruned."""
    path = np.full((1, network.backbone.n_layers), width, np.int64)
    path[:, 0] = network.backbone.groups
    return path


def mixture(outcomes: Sequence[Outcome], fraction: float) -> float:
    """Accuracy at a mean fraction when each image is given one of two neighbours by lot."""
    fractions = [outcome.mean_fraction for outcome in outcomes]
    return float(np.interp(fraction, fractions, [outcome.accuracy for outcome in outcomes]))


def random_paths(network: Network, images: int, fraction: float, seed: int) -> IntArray:
    """(N, L) random paths that spend `fraction` of the full MACs on average.

    Of many random paths, those nearest in cost to the wanted one are likelier: each is drawn with
    a weight exp(-t · cost), and t is found by bisection.
    """
    backbone, table = network.backbone, network.table
    pool = draw_paths(20_000, backbone.n_layers, backbone.groups, generator(seed)).numpy()
    costs = path_macs(pool, table, agent=False) / table.full

    def weights(tilt: float) -> FloatArray:
        raw: FloatArray = np.exp(-tilt * (costs - costs.mean()))
        raw /= raw.sum()
        return raw

    low, high = -200.0, 200.0
    for _ in range(60):
        tilt = (low + high) / 2
        low, high = (tilt, high) if weights(tilt) @ costs > fraction else (low, tilt)
    rows = torch.multinomial(
        torch.from_numpy(weights(tilt)), images, replacement=True, generator=generator(seed, 1)
    )
    drawn: IntArray = pool[rows.numpy()]
    return drawn


def table(bundle: Bundle, rows: Sequence[Row], images: int, seed: int) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"{bundle.card.name}, {images} test images, seed {seed}; accuracy at equal mean compute",
        "",
        "| budget | mean compute | ours | uniform widths | random paths | ours, shuffled "
        "| distinct paths |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.budget:g} | {r.fraction:.3f} | **{r.ours:.2%}** | {r.uniform:.2%} "
        f"| {r.random:.2%} | {r.shuffled:.2%} | {r.paths} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"
