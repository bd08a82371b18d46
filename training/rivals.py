"""Rivals of the agent on the same weights and images, each at the compute that ours spent.

- uniform: every layer at the same width;
- fixed: the best path for all images alike, found by search on held-out images (`training.paths`);
- random: every image along its own random path;
- cascade: the narrowest path first, then another one where its two best classes are closest. Which
  other path does best is taken in hindsight, which flatters this rival;
- cascade, calibrated: the same, but the other path is the one that does best on the held-out images
  at this compute;
- cascade of 3: as before, and then a third path where the second's two best classes are closest.
  Which two, and how many images go on to the third, is taken in hindsight, which flatters it more;
- shuffled: the agent's own paths, each given to another image. What it loses against ours is what
  looking at the image was worth. (Nobody has to look, so it also spends less.)

Between two fixed paths lies their mixture by lot, whose accuracy is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from models.bundle import Card
from models.compute import FloatArray, IntArray, path_macs
from models.network import Network
from training.batches import generator
from training.data import Images
from training.evaluation import at_budget
from training.measure import Outcome, Policy, along
from training.supernet import draw_paths

# Of the images that a cascade sends along its second path, shares that go on to the third.
GOING_ON = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class Row:
    """Accuracies at one budget, all at the compute that ours spent.

    Attributes:
        fraction: mean share of the full MACs that ours spent, the agent included.
        accuracy: by rival, "ours" first.
        paths: how many distinct paths ours took.
    """

    budget: float
    fraction: float
    accuracy: dict[str, float]
    paths: int


def measure(
    card: Card,
    network: Network,
    images: Images,
    held_out: Images,
    budgets: Sequence[float],
    seed: int,
) -> list[Row]:
    """Measure ours and its rivals at each budget."""
    backbone, rng = network.backbone, np.random.default_rng(seed)

    def outcomes(images: Images, paths: Sequence[IntArray]) -> list[Outcome]:
        found = [along(network, images, card.preprocessing, path) for path in paths]
        return sorted(found, key=lambda outcome: outcome.mean_fraction)

    widths = [uniform_path(network, width) for width in range(1, backbone.groups + 1)]
    found = [np.array([path]) for path in card.agent.paths]
    uniform, fixed = outcomes(images, widths), outcomes(images, found)
    known = outcomes(held_out, widths), outcomes(held_out, found)

    def given(paths: IntArray) -> float:
        """Accuracy when each image takes its row of the agent's paths, looked up if known."""
        if not {tuple(path) for path in paths.tolist()} <= set(card.agent.paths):
            return along(network, images, card.preprocessing, paths).accuracy
        right = [o.right & (o.widths == paths).all(axis=1) for o in fixed]
        return float(np.any(right, axis=0).mean())

    rows, policy = [], Policy(network, images, card.preprocessing)
    for number, budget in enumerate(budgets):
        ours = at_budget(network, card, images, budget, policy)
        others = ours.widths[rng.permutation(len(images))]
        spent = ours.mean_fraction
        drawn = random_paths(network, len(images), spent, seed + number)
        by_margin = cascades(uniform, fixed, spent)
        accuracy = {
            "ours": ours.accuracy,
            "cascade": max(by_margin),
            "cascade, calibrated": by_margin[int(np.argmax(cascades(*known, spent)))],
            "cascade of 3": cascade_of_three(uniform, fixed, spent),
            "fixed": mixture([*fixed, uniform[-1]], spent) if fixed else None,
            "uniform": mixture(uniform, spent),
            "random": along(network, images, card.preprocessing, drawn).accuracy,
            "shuffled": given(others),
        }
        made = {name: value for name, value in accuracy.items() if value is not None}
        rows.append(Row(budget, spent, made, len(np.unique(ours.widths, axis=0))))
    return rows


def uniform_path(network: Network, width: int) -> IntArray:
    """(1, L), every layer at one width."""
    return np.full((1, network.backbone.n_layers), width, np.int64)


def mixture(outcomes: Sequence[Outcome], fraction: float) -> float:
    """Accuracy at a mean fraction when each image is given one of two neighbours by lot.

    Those that a mixture of cheaper and dearer ones beats are left out.
    """
    points = sorted((outcome.mean_fraction, outcome.accuracy) for outcome in outcomes)
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    shares, accuracies = zip(*hull, strict=True)
    return float(np.interp(fraction, shares, accuracies))


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-9)


def cascades(uniform: Sequence[Outcome], fixed: Sequence[Outcome], fraction: float) -> list[float]:
    """Accuracy at a mean fraction of the cascade from the narrowest path to each other one."""
    first = uniform[0]
    order = np.argsort(margins(first), kind="stable")
    found = []
    for second in [*uniform[1:], *fixed[1:]]:
        count = (fraction - first.mean_fraction) / second.mean_fraction * len(order)
        again = order[: int(np.clip(round(count), 0, len(order)))]
        right = first.right.copy()
        right[again] = second.right[again]
        found.append(float(right.mean()))
    return found


def cascade_of_three(
    uniform: Sequence[Outcome], fixed: Sequence[Outcome], fraction: float
) -> float:
    """Accuracy at a mean fraction of the best cascade from the narrowest path over two others."""
    first, others = uniform[0], sorted([*uniform[1:], *fixed[1:]], key=lambda o: o.mean_fraction)
    order, best = np.argsort(margins(first), kind="stable"), max(cascades(uniform, fixed, fraction))
    for second, third in combinations(others, 2):
        doubt = margins(second)
        for share in GOING_ON:
            cost = second.mean_fraction + share * third.mean_fraction
            count = (fraction - first.mean_fraction) / cost * len(order)
            again = order[: int(np.clip(round(count), 0, len(order)))]
            last = again[np.argsort(doubt[again], kind="stable")][: round(share * len(again))]
            right = first.right.copy()
            right[again] = second.right[again]
            right[last] = third.right[last]
            best = max(best, float(right.mean()))
    return best


def margins(outcome: Outcome) -> FloatArray:
    """(N,) by how much the logarithms of the two largest probabilities of each image differ."""
    differences: FloatArray = np.diff(np.sort(outcome.log_probabilities, axis=1)[:, -2:], axis=1)
    return differences[:, 0]


def random_paths(network: Network, images: int, fraction: float, seed: int) -> IntArray:
    """(N, L) random paths that spend `fraction` of the full MACs on average.

    Of many random paths, those nearest in cost to the wanted one are likelier: each is drawn with
    a weight exp(-t · cost), and t is found by bisection.
    """
    backbone, table = network.backbone, network.table
    pool = draw_paths(20_000, backbone, generator(seed)).numpy()
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
