"""What `benchmarks.engines` finds, as its tables and its picture show it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure.timing import Spread


@dataclass(frozen=True)
class Row:
    """An engine at a budget, against the fastest rival for this batch on as many threads.

    Attributes:
        ms: per image. mac_saving, time_saving: how many times less than the full network.
        ratio: time_saving over mac_saving, 1 if all that is saved in MACs is saved in time.
    """

    network: str
    engine: str
    threads: int
    budget: float
    batch: int
    fraction: float
    ms: Spread
    mac_saving: float
    time_saving: Spread
    ratio: Spread


@dataclass(frozen=True)
class Full:
    """The full network as a rival runs it: milliseconds an image, and billion MACs a second."""

    network: str
    rival: str
    threads: int
    batch: int
    ms: Spread
    gmacs: float


@dataclass(frozen=True)
class Forecast:
    """Milliseconds per image, foretold at the engine's start and then measured."""

    network: str
    engine: str
    threads: int
    budget: float
    batch: int
    foretold: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.foretold / self.measured - 1
