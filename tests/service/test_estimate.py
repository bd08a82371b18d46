from __future__ import annotations

import numpy as np
import pytest

from service.costs import Cost, CostTable
from service.estimate import Estimate
from service.typical import Typical

# A batch takes 1 ms, and a row 10 ms for all of the network.
TABLE = CostTable([Cost(b, n, 1 + 10 * b * n) for b in (0.1, 0.5, 1.0) for n in (1, 4, 16)])


def seconds(estimate: Estimate, *shares: float) -> float:
    return estimate.batch() + float(estimate.rows(np.array(shares)).sum())


def test_rows_and_batch_come_from_the_table() -> None:
    estimate = Estimate(TABLE)
    assert estimate.batch() == pytest.approx(0.001)
    assert estimate.rows(np.array([0.1, 0.3, 1.0])) == pytest.approx([0.001, 0.003, 0.01])


def test_rows_that_look_several_times_cost_more_than_the_whole() -> None:
    assert Estimate(TABLE).rows(np.array([2.5])) == pytest.approx([0.025])


def test_learn_follows_a_machine_that_became_slower_and_recovers() -> None:
    estimate, shares = Estimate(TABLE), np.array([0.5, 0.1])
    usual = seconds(estimate, *shares)
    for factor in (3, 1):
        for _ in range(100):
            estimate.learn(shares, usual * factor)
        assert seconds(estimate, 1, 1) == pytest.approx(0.021 * factor, rel=0.05)


def test_learn_allows_for_what_varies() -> None:
    steady, varying = Estimate(TABLE), Estimate(TABLE)
    for n in range(200):
        steady.learn(np.array([1.0]), 0.011)
        varying.learn(np.array([1.0]), 0.011 * (0.5 if n % 2 else 1.5))
    one = np.array([1.0])
    assert steady.rows(one, 4) == pytest.approx(steady.rows(one), rel=1e-3)
    assert varying.rows(one, 1) == pytest.approx(1.5 * varying.rows(one), rel=0.1)


def test_without_a_table_the_first_batch_tells() -> None:
    estimate = Estimate(None)
    assert seconds(estimate, 1) == 0
    estimate.learn(np.array([0.5, 0.5]), 0.02)
    assert seconds(estimate, 1) == pytest.approx(0.02)


def test_typical_first_value_replaces_what_is_unknown() -> None:
    unknown, known = Typical(), Typical(1.0)
    for typical in (unknown, known):
        typical.add(5)
    assert unknown.mean == 5
    assert 1 < known.mean < 2
