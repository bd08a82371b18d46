from __future__ import annotations

import numpy as np
import pytest

from service.costs import Cost
from service.estimate import Estimate


def seconds(estimate: Estimate, *shares: float) -> float:
    return estimate.batch() + float(estimate.rows(np.array(shares)).sum())


def true_s(shares: np.ndarray, compute: float = 0.01, row: float = 0.0005) -> float:
    """A machine on which a batch takes 1 ms, and something for each row and its compute."""
    return 0.001 + float((row + compute * shares).sum())


def table(*, compute: float = 0.01) -> list[Cost]:
    return [
        Cost(budget, batch, 1e3 * true_s(np.full(batch, budget), compute))
        for budget in (0.1, 0.5, 1.0)
        for batch in (1, 4, 16)
    ]


@pytest.mark.parametrize("shares", [(0.1,), (1.0,), (0.1, 1.0, 0.3), (0.2,) * 16, (2.5, 0.1)])
def test_rows_and_batch_come_from_the_table(shares: tuple[float, ...]) -> None:
    expected = true_s(np.array(shares))
    assert seconds(Estimate(table()), *shares) == pytest.approx(expected, rel=0.03)


def test_learn_follows_a_machine_that_became_slower_and_recovers() -> None:
    estimate, rng = Estimate(table()), np.random.default_rng(0)
    for factor in (3, 1):
        for _ in range(150):
            shares = rng.uniform(0.05, 1, rng.integers(1, 9))
            estimate.learn(shares, factor * true_s(shares))
        for shares in (np.ones(8), np.full(8, 0.1), np.ones(1)):
            assert seconds(estimate, *shares) == pytest.approx(factor * true_s(shares), rel=0.1)


def test_learn_mends_a_table_that_was_wrong() -> None:
    """Measured while the machine did something else: compute seemed to cost nothing."""
    estimate, rng = Estimate(table(compute=0.0001)), np.random.default_rng(0)
    for _ in range(300):
        shares = rng.uniform(0.05, 1, rng.integers(1, 9))
        estimate.learn(shares, true_s(shares))
    for shares, error in ((np.ones(8), 0.1), (np.full(8, 0.1), 0.25), (np.ones(1), 0.25)):
        assert seconds(estimate, *shares) == pytest.approx(true_s(shares), rel=error)


def test_learn_the_same_batch_forever_leaves_the_rest_as_the_table_says() -> None:
    estimate, shares = Estimate(table()), np.full(4, 0.5)
    for _ in range(5000):
        estimate.learn(shares, true_s(shares))
    assert seconds(estimate, 0.1) == pytest.approx(true_s(np.array([0.1])), rel=0.1)


def test_learn_one_batch_that_was_disturbed_changes_little() -> None:
    estimate, shares = Estimate(table()), np.full(4, 0.5)
    for _ in range(100):
        estimate.learn(shares, true_s(shares))
    estimate.learn(shares, 5.0)
    assert seconds(estimate, *shares) < 1.3 * true_s(shares)


def test_learn_allows_for_what_varies() -> None:
    steady, varying, one = Estimate(table()), Estimate(table()), np.array([1.0])
    for n in range(300):
        steady.learn(one, true_s(one))
        varying.learn(one, true_s(one) * (0.5 if n % 2 else 1.5))
    assert steady.rows(one, 4) == pytest.approx(steady.rows(one), rel=0.05)
    assert varying.rows(one, 1) == pytest.approx(1.5 * varying.rows(one), rel=0.15)


def test_without_a_table_the_first_batch_tells() -> None:
    estimate = Estimate()
    assert seconds(estimate, 1) == 0
    estimate.learn(np.array([0.5, 0.5]), 0.02)
    assert seconds(estimate, 0.5, 0.5) == pytest.approx(0.02)
    assert seconds(estimate, 1) > 0
