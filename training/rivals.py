"""Rivals of the agent on the same weights and images, each at the compute that ours spent.

- uniform: every layer at the same width;
- fixed: the same for all images: one of the paths that were found by search on held-out images
  (`training.paths`), or, where ours blends two views, one of the ways that ours may go. Which, is
  taken in hindsight;
- random: every image along its own random path;
- cascade: the narrowest path first, then another one where its two best classes are closest. Which
  other path does best is taken in hindsight, which flatters this rival;
- cascade, calibrated: the same, but the other path is the one that does best on the held-out images
  at this compute;
- cascade of 3: as before, and then a third path where the second's two best classes are closest.
  Which two, and how many images go on to the third, is taken in hindsight, which flatters it more;
- cascade of 3, calibrated: the same, but all of this is what does best on the held-out images;
- shuffled: the ways that ours went, each given to another image. What it loses against ours is what
  looking at the image was worth. (Nobody has to look, so it also spends less.)

Where ours looks at mirror images and blends its answers, the cascades do so on the same paths, or
do not blend, whichever is better, and what is shuffled does.

Between two that are fixed lies their random mixture, whose accuracy is the mean of theirs.

All classify the same images, so a difference between ours and a rival is known better than either:
its standard error counts only the images of which one of the two is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch

from models.card import Card
from models.compute import FloatArray, IntArray, path_macs
from models.network import Network
from training.batches import generator
from training.data import Images
from training.evaluation import at_budget
from training.measure import Outcome, Policy, along
from training.supernet import draw_paths

# (N,) whether each image is classified right, or, in a random mixture, the chance of it.
Right = FloatArray | npt.NDArray[np.bool_]
# Of the images that a cascade sends along its second path, shares that go on to the third.
GOING_ON = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class Row:
    """Accuracies at one budget, all at the compute that ours spent.

    Attributes:
        fraction: mean share of the full MACs that ours spent, the agent included.
        accuracy: by rival, "ours" first.
        error: by rival, the standard error of ours less it.
        paths: how many distinct paths gave ours' answers (not how many sequences of looks).
    """

    budget: float
    fraction: float
    accuracy: dict[str, float]
    error: dict[str, float]
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
    policy, known = (Policy(network, of, card.preprocessing) for of in (images, held_out))
    agent = card.agent

    def sent(images: Images, paths: IntArray) -> Outcome:
        return along(network, images, card.preprocessing, paths)

    def stages_of(images: Images, policy: Policy) -> Stages:
        widths = range(1, backbone.groups + 1)
        first, *others = (sent(images, uniform_path(network, width)) for width in widths)
        # The last of the looks is at the full network, as the last of the uniform widths.
        others += policy.alone()[1:-1]
        return Stages(first, others, sorted({0.0, agent.blend}), images.labels)

    stages, calibrating = stages_of(images, policy), stages_of(held_out, known)
    uniform = [stages.first, *stages.others[: backbone.groups - 1]]
    fixed = [
        sent(images, np.array([agent.paths[number]])) if agent.mirrored(number) else look
        for number, look in enumerate(policy.alone())
    ]
    if fixed and agent.blend:
        fixed += [policy.by_routes(way) for way in _ways(len(images), len(agent.paths))]

    rows = []
    for number, budget in enumerate(budgets):
        ours = at_budget(network, card, images, budget, policy)
        order = rng.permutation(len(images))
        spent = ours.mean_fraction
        drawn = random_paths(network, len(images), spent, seed + number)
        by_margin, of_three = cascades(stages, spent), cascades_of_three(stages, spent)
        chosen = _best(cascades(calibrating, spent))
        three_chosen = _best(cascades_of_three(calibrating, spent))
        if ours.routes is None:
            shuffled = sent(images, ours.widths[order])
        else:
            shuffled = policy.by_routes(ours.routes[order])
        right: dict[str, Right | None] = {
            "ours": ours.right,
            "cascade": by_margin[_best(by_margin)],
            "cascade, calibrated": by_margin[chosen],
            "cascade of 3": of_three[_best(of_three)],
            "cascade of 3, calibrated": of_three[three_chosen],
            "fixed": mixture(fixed, spent) if fixed else None,
            "uniform": mixture(uniform, spent),
            "random": sent(images, drawn).right,
            "shuffled": shuffled.right,
        }
        made = {name: found for name, found in right.items() if found is not None}
        accuracy = {name: float(found.mean()) for name, found in made.items()}
        error = {name: _error(ours.right - found.astype(float)) for name, found in made.items()}
        distinct = len(np.unique(ours.widths, axis=0))
        rows.append(Row(budget, spent, accuracy, error, distinct))
    return rows


def _ways(images: int, paths: int) -> Iterator[npt.NDArray[np.bool_]]:
    """(images, paths), all ways from the first path over any of the others, each for all images."""
    for later in product((False, True), repeat=paths - 1):
        yield np.tile((True, *later), (images, 1))


def _best(found: Sequence[Right]) -> int:
    """Number of the one with the most images right."""
    return int(np.argmax(np.mean(found, axis=1)))


def _error(differences: FloatArray) -> float:
    """Standard error of the mean."""
    return float(differences.std() / math.sqrt(len(differences)))


def uniform_path(network: Network, width: int) -> IntArray:
    """(1, L), every layer at one width."""
    return np.full((1, network.backbone.n_layers), width, np.int64)


def mixture(outcomes: Sequence[Outcome], fraction: float) -> Right:
    """Each image's chance at a mean fraction when it is given one of two neighbours at random.

    Those that a mixture of cheaper and dearer ones beats, on these images, are left out.
    """
    hull: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda o: (o.mean_fraction, o.accuracy)):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], outcome):
            hull.pop()
        hull.append(outcome)
    shares = [outcome.mean_fraction for outcome in hull]
    place = float(np.interp(fraction, shares, range(len(hull))))
    left, right = hull[int(place)], hull[min(int(place) + 1, len(hull) - 1)]
    weight = place % 1
    return (1 - weight) * left.right + weight * right.right


def _slope(a: Outcome, b: Outcome) -> float:
    return (b.accuracy - a.accuracy) / max(b.mean_fraction - a.mean_fraction, 1e-9)


@dataclass(frozen=True)
class Stages:
    """What a cascade may consist of.

    Attributes:
        first: the narrowest path. others: what each may go on to, and answers by itself.
        blends: what the answer before may count in an answer.
        labels: (N,) of the images, for answers that are blended.
    """

    first: Outcome
    others: Sequence[Outcome]
    blends: Sequence[float]
    labels: IntArray

    def after(self, before: Outcome, again: Outcome, blend: float) -> Outcome:
        """A stage after another one: its compute, and the answer of both."""
        if not blend:
            return again
        logits = (1 - blend) * again.logits + blend * before.logits
        return replace(again, logits=logits, right=logits.argmax(axis=1) == self.labels)


def cascades(stages: Stages, fraction: float) -> list[Right]:
    """Which are right at a mean fraction in each cascade from the narrowest path to another."""
    first = stages.first
    order = np.argsort(margins(first), kind="stable")
    found: list[Right] = []
    for other, blend in product(stages.others, stages.blends):
        second = stages.after(first, other, blend)
        count = (fraction - first.mean_fraction) / second.mean_fraction * len(order)
        again = order[: int(np.clip(round(count), 0, len(order)))]
        right = first.right.copy()
        right[again] = second.right[again]
        found.append(right)
    return found


def cascades_of_three(stages: Stages, fraction: float) -> list[Right]:
    """Which are right at a mean fraction in each cascade from the narrowest, over up to two others.

    In the same order for all images, as what a path costs does not depend on them.
    """
    first = stages.first
    order = np.argsort(margins(first), kind="stable")
    found = cascades(stages, fraction)
    by_compute = sorted(stages.others, key=lambda other: other.mean_fraction)
    for (one, other), blend in product(combinations(by_compute, 2), stages.blends):
        second = stages.after(first, one, blend)
        third, doubt = stages.after(second, other, blend), margins(second)
        for share in GOING_ON:
            cost = second.mean_fraction + share * third.mean_fraction
            count = (fraction - first.mean_fraction) / cost * len(order)
            again = order[: int(np.clip(round(count), 0, len(order)))]
            last = again[np.argsort(doubt[again], kind="stable")][: round(share * len(again))]
            right = first.right.copy()
            right[again] = second.right[again]
            right[last] = third.right[last]
            found.append(right)
    return found


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
