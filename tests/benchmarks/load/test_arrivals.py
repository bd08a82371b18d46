from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.load.arrivals import SHAPES, STEPS, Phase, arrivals, day, poisson, steps, within

CAPACITY = 200.0


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_have_the_rate_of_each_phase(shape: str) -> None:
    phases = SHAPES[shape](60)
    times = arrivals(phases, CAPACITY, seed=1)
    assert sum(phase.seconds for phase in phases) == pytest.approx(60)
    assert (np.diff(times) >= 0).all()
    for name in {phase.name for phase in phases}:
        wanted = CAPACITY * sum(p.level * p.seconds for p in phases if p.name == name)
        # Four standard deviations of a Poisson count.
        assert abs(within(phases, name, times).sum() - wanted) < 4 * math.sqrt(wanted) + 1


def test_gaps_of_poisson_arrivals_are_exponential() -> None:
    gaps = np.diff(arrivals(poisson(100, 1.0), CAPACITY, seed=2)) * CAPACITY
    assert gaps.mean() == pytest.approx(1, abs=0.05)
    assert gaps.std() == pytest.approx(1, abs=0.05)
    assert (gaps > 1).mean() == pytest.approx(math.exp(-1), abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_are_the_same_for_the_same_seed_only(shape: str) -> None:
    phases = SHAPES[shape](10)
    first, same, other = (arrivals(phases, CAPACITY, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert len(first) != len(other) or (first != other).any()


def test_steps_go_from_half_of_capacity_to_three_times() -> None:
    assert [phase.level for phase in steps(60)] == list(STEPS)
    assert (STEPS[0], STEPS[-1]) == (0.5, 3.0)


def test_day_is_calm_at_night_and_above_capacity_in_the_evening() -> None:
    levels: dict[str, list[float]] = {}
    for phase in day(600):
        levels.setdefault(phase.name, []).append(phase.level)
    assert len(levels) == 24
    assert max(levels["03h"]) < 0.3
    assert max(levels["10h"]) < 1.5 < max(levels["20h"])


def test_within_takes_every_phase_of_a_name() -> None:
    phases = [Phase("calm", 1, 1.0), Phase("burst", 2, 1.0), Phase("calm", 1, 1.0)]
    found = within(phases, "calm", np.array([0.0, 0.9, 1.0, 2.9, 3.0, 3.9]))
    assert found.tolist() == [True, True, False, False, True, True]
