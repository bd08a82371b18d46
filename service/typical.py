"""What is typical of something that drifts."""

from __future__ import annotations

# What the newest batch weighs: those of the last twenty or so count.
_NEWEST = 0.05


class Typical:
    """A running mean and mean deviation of what drifts; the newest values weigh most.

    Args:
        mean: before anything was seen; None: 0, and the first value replaces it.
    """

    def __init__(self, mean: float | None = None, newest: float = _NEWEST) -> None:
        self.mean = 0.0 if mean is None else mean
        self.deviation = 0.0
        self._newest = newest
        self._known = mean is not None

    def add(self, value: float) -> None:
        """See one more value."""
        if not self._known:
            self.mean, self._known = value, True
        self.deviation += self._newest * (abs(value - self.mean) - self.deviation)
        self.mean += self._newest * (value - self.mean)

    def high(self, deviations: float) -> float:
        """The mean and so many mean deviations: for a normal spread, 2.5 of them are two sigma."""
        return self.mean + deviations * self.deviation
