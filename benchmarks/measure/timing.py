"""Timing rivals fairly: in turn within every round, so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")
# Threads that the rival before left spinning have gone to sleep by then: ONNX Runtime's take 35 ms.
PAUSE_S = 0.06
# What is shorter is repeated: a clock's reading and a first miss of the cache would tell.
LEAST_S = 0.02
# A first run may take so many times longer than the next.
COLD = 10
# However little time there is.
LEAST_ROUNDS = 3


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
    limit_s: float = math.inf,
) -> dict[Key, npt.NDArray[np.float64]]:
    """Seconds (rounds,) that each rival takes; each is run once before, unmeasured.

    Args:
        rounds: the most; once `limit_s` seconds by the clock have passed, none is begun beyond
            `LEAST_ROUNDS`.
    """
    start = clock()
    repeats = {key: _repeats(work, clock) for key, work in rivals.items()}
    seconds: dict[Key, list[float]] = {key: [] for key in rivals}
    for number in range(rounds):
        if number >= LEAST_ROUNDS and clock() - start > limit_s:
            break
        for key, work in rivals.items():
            time.sleep(PAUSE_S)
            seconds[key].append(_timed(work, repeats[key], clock))
    return {key: np.array(values) for key, values in seconds.items()}


def _repeats(work: Callable[[], object], clock: Callable[[], float]) -> int:
    """How often to run what is short; what is long need not be run again to know that."""
    if _timed(work, 1, clock) >= LEAST_S * COLD:
        return 1
    return max(1, round(LEAST_S / max(_timed(work, 1, clock), 1e-9)))


def _timed(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one run, the mean of a few."""
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats
