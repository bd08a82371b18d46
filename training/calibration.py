"""What held-out training images say: what each penalty spends, and how sure answers should be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from models.card import CalibrationPoint, penalty_at, penalty_scale
from models.compute import IntArray
from training.measure import Logits, Policy

# Below 0 compute is spent on images that are not expected to gain: a budget may ask for that. At
# this one the agent takes all that the full network's compute allows.
LOWEST_PENALTY = -10.0
# Of the penalties so many are asked for a temperature, which hardly differs from one to the other.
_ASKED = 5
# The least and the highest temperature that are found.
_TEMPERATURES = (1 / 16, 16.0)


def calibrate(
    policy: Policy, *, highest_penalty: float, points: int
) -> tuple[CalibrationPoint, ...]:
    """Measure penalties where the spending changes most, and sort them by rising fraction.

    Args:
        policy: on held-out images, of a folded network with the weights as they are served.
        points: how many are measured, fewer if there is nothing between them.
    """
    measured: dict[float, CalibrationPoint] = {}

    def measure(penalty: float) -> None:
        outcome = policy(penalty)
        measured[penalty] = CalibrationPoint(penalty, outcome.mean_fraction, outcome.accuracy)

    with tqdm(total=points, desc="calibration", unit="penalty", disable=None) as bar:
        for penalty in (LOWEST_PENALTY, highest_penalty):
            measure(penalty)
            bar.update()
        # Between penalties that spend alike there are only so many numbers.
        while len(measured) < points and (penalty := widest_gap(measured)) not in measured:
            measure(penalty)
            bar.update()
    return rising(list(measured.values()))


def widest_gap(measured: dict[float, CalibrationPoint]) -> float:
    """The penalty in the middle of the two neighbours that differ most in what they spend.

    Where the spending jumps, halving the gap again and again would find the jump and nothing
    else: a gap counts by its width in penalty as well. What is spent beyond the full network's
    MACs, which no budget asks for, and what falls with the penalty, which `rising` leaves out, do
    not count.
    """
    points = sorted(measured.values(), key=lambda point: point.penalty)

    def width(pair: tuple[CalibrationPoint, CalibrationPoint]) -> float:
        low, high = pair
        return (min(low.fraction, 1) - min(high.fraction, 1)) * (
            penalty_scale(high.penalty) - penalty_scale(low.penalty)
        )

    low, high = max(pairwise(points), key=width)
    return penalty_at((penalty_scale(low.penalty) + penalty_scale(high.penalty)) / 2)


def rising(points: list[CalibrationPoint]) -> tuple[CalibrationPoint, ...]:
    """The points by falling penalty without those that spend no more than one before."""
    kept: list[CalibrationPoint] = []
    for point in sorted(points, key=lambda point: -point.penalty):
        if not kept or point.fraction > kept[-1].fraction:
            kept.append(point)
    return tuple(kept)


def fit_temperature(policy: Policy, points: Sequence[CalibrationPoint]) -> float:
    """What logits are divided by, whatever the budget, so that labels are likeliest.

    The geometric mean over a few of the penalties (temperature scaling: Guo et al., On Calibration
    of Modern Neural Networks, ICML 2017).

    Args:
        policy: that the points were measured with.
    """
    reached = [point for point in points if point.fraction <= 1] or points[:1]
    few = reached[:: -(-len(reached) // _ASKED)]
    labels = policy.images.labels
    found = [likeliest_temperature(policy(point.penalty).logits, labels) for point in few]
    return float(np.exp(np.mean(np.log(found))))


def likeliest_temperature(logits: Logits, labels: IntArray) -> float:
    """The temperature at which the labels (N,) have the greatest likelihood, found by bisection.

    Args:
        logits: (N, classes).
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    of_labels = values[np.arange(len(labels)), labels].mean()
    low, high = np.log(_TEMPERATURES)
    # The likelihood has one peak; hotter, and what is expected of the logits falls.
    for _ in range(40):
        middle = (low + high) / 2
        powers = np.exp(values / np.exp(middle))
        expected = ((powers * values).sum(axis=1) / powers.sum(axis=1)).mean()
        low, high = (middle, high) if expected > of_labels else (low, middle)
    return float(np.exp((low + high) / 2))
