"""What a network does with its freedom, in numbers: `find` measures what `report` shows.

Difficulty of an image is the full network's loss on it. Compute is the share of the full network's
MACs, the agent's included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from models.card import Card
from models.compute import FloatArray, IntArray
from models.network import Network
from training.corruptions import SETTINGS, STRENGTHS, corrupt
from training.data import Images
from training.evaluation import at_budget
from training.measure import Outcome, Policy

BINS, DECILES = 15, 10


@dataclass(frozen=True)
class Bin:
    """Images about whose label the network is about equally sure.

    Attributes:
        share: of all images.
        confidence: mean probability of the label given. accuracy: how often it was right.
    """

    share: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class AtBudget:
    """What happened to all images at a budget.

    Attributes:
        fraction: mean compute. spread: its deviation among images.
        paths: how many distinct ones were taken.
        cheapest: share of the images that cost as little as any did.
        widths: mean width of each layer.
        bins: by rising confidence, without empty ones.
        calibration_error: mean difference of confidence and accuracy over the bins.
        correlation: of compute and difficulty (Spearman's); None where all images cost the same.
    """

    budget: float
    fraction: float
    spread: float
    accuracy: float
    paths: int
    cheapest: float
    widths: list[float]
    bins: list[Bin]
    calibration_error: float
    correlation: float | None


@dataclass(frozen=True)
class OfClass:
    """Images of a class.

    Attributes:
        fraction: mean compute. spread: its deviation among images.
        quartiles: of the compute, first and third.
        accuracy: at the budget. full: that of the full network.
    """

    label: str
    images: int
    fraction: float
    spread: float
    quartiles: tuple[float, float]
    accuracy: float
    full: float


@dataclass(frozen=True)
class Corrupted:
    """Images corrupted alike; strength 0 is the images as they are.

    Attributes:
        fraction: mean compute. accuracy: at the budget. full: that of the full network.
    """

    kind: str
    strength: int
    fraction: float
    accuracy: float
    full: float


@dataclass(frozen=True)
class Decile:
    """A tenth of the images, by difficulty.

    Attributes:
        loss: mean loss of the full network. wrong: share of images that it gets wrong.
        fraction: mean compute.
    """

    loss: float
    wrong: float
    fraction: float


@dataclass(frozen=True)
class Findings:
    """All that is shown.

    Attributes:
        focus: the budget at which classes, images, corruption and difficulty are looked at.
        budgets: by rising budget, the last is the full network.
        classes: by rising compute.
        corrupted: of each kind, by rising strength.
        deciles: by rising difficulty.
        order: (N,) images by rising compute, equal ones by lot.
        ours: what the budget `focus` did. full: what the full network did.
    """

    focus: float
    budgets: list[AtBudget]
    classes: list[OfClass]
    corrupted: list[Corrupted]
    deciles: list[Decile]
    order: IntArray
    ours: Outcome
    full: Outcome


def find(
    network: Network,
    card: Card,
    images: Images,
    budgets: Sequence[float],
    focus: float,
    seed: int,
) -> Findings:
    """Measure images, as they are at each budget and at 1, and corrupted at the budget `focus`.

    Args:
        focus: one of the budgets.
        seed: of the noise, and of the lot.
    """
    runs = len({*budgets, 1.0}) + 2 * len(SETTINGS) * len(STRENGTHS)
    with tqdm(total=runs, desc="report", unit="run", disable=None) as bar:

        def run(images: Images, budget: float, policy: Policy | None = None) -> Outcome:
            outcome = at_budget(network, card, images, budget, policy)
            bar.update()
            return outcome

        # Corrupted ones are asked at one budget alone: there only the paths chosen are run.
        asked = Policy(network, images, card.preprocessing)
        outcomes = {budget: run(images, budget, asked) for budget in sorted({*budgets, 1.0})}
        ours, full = outcomes[focus], outcomes[1.0]
        rows = []
        for kind in SETTINGS:
            rows.append(_corrupted(kind, 0, ours, full))
            for strength, changed in _changed(images, kind, seed):
                rows.append(_corrupted(kind, strength, run(changed, focus), run(changed, 1.0)))
    loss = losses(full, images)
    return Findings(
        focus,
        [_at_budget(at, outcome, loss, card.temperature) for at, outcome in outcomes.items()],
        _of_classes(images, ours, full),
        rows,
        _deciles(loss, ours, full),
        np.lexsort((np.random.default_rng(seed).permutation(len(images)), ours.fraction)),
        ours,
        full,
    )


def losses(outcome: Outcome, images: Images) -> FloatArray:
    """(N,) cross-entropy of each image."""
    logs: FloatArray = outcome.log_probabilities[np.arange(len(images)), images.labels]
    return -logs


def reliability(outcome: Outcome, temperature: float) -> list[Bin]:
    """Images in bins of equal range of confidence."""
    confidence = np.exp(outcome.at_temperature(temperature).max(axis=1))
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    groups = [place == number for number in np.unique(place)]
    return [
        Bin(
            float(group.mean()), float(confidence[group].mean()), float(outcome.right[group].mean())
        )
        for group in groups
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error."""
    return sum(b.share * abs(b.confidence - b.accuracy) for b in bins)


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Correlation of ranks, equal values sharing their mean rank; None if one does not vary."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (counts.cumsum() - (counts - 1) / 2)[index]
    return ranks


def _at_budget(budget: float, outcome: Outcome, loss: FloatArray, temperature: float) -> AtBudget:
    bins = reliability(outcome, temperature)
    return AtBudget(
        budget,
        outcome.mean_fraction,
        float(outcome.fraction.std()),
        outcome.accuracy,
        len(np.unique(outcome.widths, axis=0)),
        float((outcome.fraction == outcome.fraction.min()).mean()),
        [float(width) for width in outcome.widths.mean(axis=0)],
        bins,
        calibration_error(bins),
        spearman(outcome.fraction, loss),
    )


def _of_classes(images: Images, ours: Outcome, full: Outcome) -> list[OfClass]:
    rows = []
    for label in np.unique(images.labels):
        mine = images.labels == label
        spent = ours.fraction[mine]
        first, third = np.quantile(spent, (0.25, 0.75))
        rows.append(
            OfClass(
                images.names[label],
                len(spent),
                float(spent.mean()),
                float(spent.std()),
                (float(first), float(third)),
                float(ours.right[mine].mean()),
                float(full.right[mine].mean()),
            )
        )
    return sorted(rows, key=lambda row: row.fraction)


def _changed(images: Images, kind: str, seed: int) -> Iterator[tuple[int, Images]]:
    """The images corrupted at each strength."""
    every = np.arange(len(images))
    for strength in STRENGTHS:
        pixels = corrupt(images.take(every), kind, strength, seed)
        yield strength, Images(pixels, images.labels, every, images.names)


def _corrupted(kind: str, strength: int, ours: Outcome, full: Outcome) -> Corrupted:
    return Corrupted(kind, strength, ours.mean_fraction, ours.accuracy, full.accuracy)


def _deciles(loss: FloatArray, ours: Outcome, full: Outcome) -> list[Decile]:
    tenths = np.array_split(np.argsort(loss, kind="stable"), min(DECILES, len(loss)))
    return [
        Decile(
            float(loss[tenth].mean()),
            1 - float(full.right[tenth].mean()),
            float(ours.fraction[tenth].mean()),
        )
        for tenth in tenths
    ]
