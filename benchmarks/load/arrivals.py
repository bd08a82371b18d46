"""When requests arrive: an open loop, whose times are drawn before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEPS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CALM, BURST = 0.5, 2.0
# Seconds from one burst to the next, and the share of them that a burst takes.
PERIOD_S, BURST_SHARE = 10.0, 0.25
# Of a day: the hours of its peaks, how high (times capacity) and wide (hours) they are, the night.
PEAKS = ((10.5, 0.9, 2.5), (20.0, 1.5, 1.8))
NIGHT = 0.15
DAY_PARTS = 96


@dataclass(frozen=True)
class Phase:
    """A time of constant rate.

    Attributes:
        level: arrivals a second, as a multiple of capacity.
    """

    name: str
    seconds: float
    level: float


def poisson(seconds: float, level: float = 0.7) -> list[Phase]:
    """One rate throughout."""
    return [Phase("steady", seconds, level)]


def bursts(seconds: float) -> list[Phase]:
    """Calm times and bursts in turn, at least two of each."""
    count = max(2, round(seconds / PERIOD_S))
    burst = seconds / count * BURST_SHARE
    return [Phase("calm", seconds / count - burst, CALM), Phase("burst", burst, BURST)] * count


def steps(seconds: float) -> list[Phase]:
    """From half of capacity to three times as much."""
    return [Phase(f"{level:g}×", seconds / len(STEPS), level) for level in STEPS]


def day(seconds: float) -> list[Phase]:
    """A day from midnight to midnight: a peak before noon, a higher one in the evening."""
    hours = (np.arange(DAY_PARTS) + 0.5) * 24 / DAY_PARTS
    return [Phase(f"{int(h):02}h", seconds / DAY_PARTS, _level(float(h))) for h in hours]


def _level(hour: float) -> float:
    peaks = (height * math.exp(-(((hour - at) / width) ** 2)) for at, height, width in PEAKS)
    return NIGHT + sum(peaks)


SHAPES: dict[str, Callable[[float], list[Phase]]] = {
    "poisson": poisson,
    "bursts": bursts,
    "steps": steps,
    "day": day,
}


def arrivals(phases: list[Phase], capacity: float, seed: int) -> Floats:
    """Seconds since the start, ascending: Poisson arrivals, the same for the same seed.

    Args:
        capacity: requests a second that a level of 1 means.
    """
    rng = np.random.default_rng(seed)
    times, start = [], 0.0
    for phase in phases:
        count = rng.poisson(phase.level * capacity * phase.seconds)
        times.append(start + np.sort(rng.uniform(0, phase.seconds, count)))
        start += phase.seconds
    return np.concatenate(times)


def within(phases: list[Phase], name: str, times: Floats) -> npt.NDArray[np.bool_]:
    """Which times lie in a phase of this name."""
    ends = np.cumsum([phase.seconds for phase in phases])
    index = np.minimum(np.searchsorted(ends, times, side="right"), len(phases) - 1)
    return np.array([phase.name == name for phase in phases])[index]
