"""What is usual of something that drifts: its mean, and how far it strays from it."""

from __future__ import annotations

# What the newest value weighs: the last twenty or so count.
_NEWEST = 0.05


class Ewma:
    """An exponentially weighted mean and mean deviation, as TCP keeps them of its times (RFC 6298).

    Args:
        mean: before anything was seen; None: 0, and the first value replaces it.
    """

    def __init__(self, mean: float | None = None) -> None:
        self.mean = 0.0 if mean is None else mean
        self.deviation = 0.0
        self._known = mean is not None

    def add(self, value: float) -> None:
        """See one more value."""
        if not self._known:
            self.mean, self._known = value, True
        self.deviation += _NEWEST * (abs(value - self.mean) - self.deviation)
        self.mean += _NEWEST * (value - self.mean)

    def high(self, deviations: float) -> float:
        """The mean and so many mean deviations: for a normal spread, 2.5 of them are two sigma."""
        return self.mean + deviations * self.deviation
