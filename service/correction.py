"""Budgets that hold whatever the traffic is like.

Calibration turned budgets into penalties on images like those of the training. Live ones may be
harder, and would then cost more. So a budget is shifted, slowly, until what is spent is what was
asked: stochastic approximation (Robbins and Monro, 1951) at a few budgets, with shifts between
them interpolated.
"""

from __future__ import annotations

import bisect
import math
import threading

# Where shifts are kept.
_KNOTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
# The step of the first image at a knot and of later ones; a few thousand images are remembered.
_FIRST, _LATER = 1 / 100, 1 / 250
_WEIGHT = 1 / 1000
_FARTHEST = 6.0
# No knot is shifted above it, where a calibration gives hardly more: while traffic cannot spend a
# budget its shift would go on and on, and would have to come all the way back once traffic can.
_MOST = 0.99


def _scale(budget: float) -> float:
    """The logistic scale, on which shifts are made."""
    return math.log(budget / (1 - budget))


# Plain numbers: numpy's functions take ten times as long for one.
_PLACES = [_scale(knot) for knot in _KNOTS]
_HIGHEST = [min(_scale(_MOST) - place, _FARTHEST) for place in _PLACES]


class Correction:
    """Shifts of one model's budgets, learnt from what its images cost.

    Attributes:
        error: mean of what was spent less what was asked, over the last thousand images or so.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._shifts = [0.0] * len(_KNOTS)
        self._seen = [0.0] * len(_KNOTS)
        self._lock = threading.Lock()
        self.error = 0.0
        self._images = 0

    def calibrated(self, budget: float) -> float:
        """The budget that the calibration must be asked for, so that `budget` is spent."""
        if not self._on or budget >= 1:
            return budget
        place = _scale(budget)
        shift = sum(weight * self._shifts[knot] for knot, weight in _about(place))
        return 1 / (1 + math.exp(-place - shift))

    def learn(self, budget: float, fraction: float) -> None:
        """See an image that was free to spend and cost `fraction` of the full MACs."""
        if budget >= 1:
            return
        with self._lock:
            error = fraction - budget
            self._images += 1
            self.error += max(1 / self._images, _WEIGHT) * (error - self.error)
            if not self._on:
                return
            for knot, weight in _about(_scale(budget)):
                self._seen[knot] += weight
                step = max(_FIRST / (1 + self._seen[knot] * _FIRST), _LATER)
                # A step on the logistic scale moves a budget by b (1 - b), so it is divided by it.
                change = step * weight * error / max(budget * (1 - budget), 0.05)
                shift = self._shifts[knot] - change
                self._shifts[knot] = min(max(shift, -_FARTHEST), _HIGHEST[knot])


def _about(place: float) -> tuple[tuple[int, float], tuple[int, float]]:
    """The two knots about a place, and the weight of each."""
    right = min(max(bisect.bisect_left(_PLACES, place), 1), len(_PLACES) - 1)
    left = right - 1
    share = (place - _PLACES[left]) / (_PLACES[right] - _PLACES[left])
    share = min(max(share, 0.0), 1.0)
    return (left, 1 - share), (right, share)
