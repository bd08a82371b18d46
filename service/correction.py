"""Budgets that hold whatever the traffic is like.

Calibration turned budgets into penalties on images like those of the training. Live ones may be
harder, and would then cost more. So a budget is shifted, slowly, until what is spent is what was
asked: stochastic approximation (Robbins and Monro, 1951) at a few budgets, with shifts between
them interpolated.
"""

from __future__ import annotations

import threading

import numpy as np

# Where shifts are kept, on the logistic scale that shifts are made on.
_KNOTS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
_SCALE = np.log(_KNOTS / (1 - _KNOTS))
# The step of the first image at a knot and of later ones; a few thousand images are remembered.
_FIRST, _LATER = 1 / 100, 1 / 250
_WEIGHT = 1 / 1000
_FARTHEST = 6.0


class Correction:
    """Shifts of one model's budgets, learnt from what its images cost.

    Attributes:
        error: mean of what was spent less what was asked, over the last thousand images or so.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._shifts = np.zeros(len(_KNOTS))
        self._seen = np.zeros(len(_KNOTS))
        self._lock = threading.Lock()
        self.error = 0.0
        self._images = 0

    def calibrated(self, budget: float) -> float:
        """The budget that the calibration must be asked for, so that `budget` is spent."""
        if not self._on or budget >= 1:
            return budget
        place = np.log(budget / (1 - budget))
        shifted = place + np.interp(place, _SCALE, self._shifts)
        return float(1 / (1 + np.exp(-shifted)))

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
            place = np.log(budget / (1 - budget))
            right = int(np.clip(np.searchsorted(_SCALE, place), 1, len(_SCALE) - 1))
            share = float(
                np.clip((place - _SCALE[right - 1]) / (_SCALE[right] - _SCALE[right - 1]), 0, 1)
            )
            for knot, weight in ((right - 1, 1 - share), (right, share)):
                self._seen[knot] += weight
                step = max(_FIRST / (1 + self._seen[knot] * _FIRST), _LATER)
                # A step on the logistic scale moves a budget by b (1 - b), so it is divided by it.
                change = step * weight * error / max(budget * (1 - budget), 0.05)
                self._shifts[knot] = np.clip(self._shifts[knot] - change, -_FARTHEST, _FARTHEST)
