"""Timing rivals fairly: in turn within every round, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")
# Threads that the rival before left spinning have gone to sleep by then.
PAUSE_S = 0.03
# What is shorter is repeated: a clock's reading and a first miss of the cache would tell.
LEAST_S = 0.02


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Spread:
        """Of all values."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


def in_turn(
    rivals: Mapping[Key, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, npt.NDArray[np.float64]]:
    """Seconds (rounds,) that each rival takes; each is run once before, unmeasured."""
    repeats = {}
    for key, work in rivals.items():
        work()
        repeats[key] = max(1, round(LEAST_S / max(_timed(work, 1, clock), 1e-9)))
    seconds: dict[Key, list[float]] = {key: [] for key in rivals}
    for _ in range(rounds):
        for key, work in rivals.items():
            time.sleep(PAUSE_S)
            seconds[key].append(_timed(work, repeats[key], clock))
    return {key: np.array(values) for key, values in seconds.items()}


def _timed(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one run, the mean of a few."""
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats
