"""From budget to penalty: what each penalty spends, measured on held-out training images."""

from __future__ import annotations

from itertools import pairwise

from tqdm import tqdm

from models.card import CalibrationPoint, penalty_at, penalty_scale
from models.network import Network
from models.preprocess import Preprocessing
from training.data import Images
from training.measure import Policy

# Below 0 compute is spent on images that are not expected to gain: a budget may ask for that. At
# this one the agent takes all that the full network's compute allows.
LOWEST_PENALTY = -10.0


def calibrate(
    network: Network,
    held_out: Images,
    preprocessing: Preprocessing,
    *,
    highest_penalty: float,
    points: int,
) -> tuple[CalibrationPoint, ...]:
    """Measure penalties where the spending changes most, and sort them by rising fraction.

    Args:
        network: folded, with the weights as they are served.
        points: how many are measured, fewer if there is nothing between them.
    """
    policy = Policy(network, held_out, preprocessing)
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
