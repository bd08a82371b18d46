from __future__ import annotations

import numpy as np
import pytest

from service.correction import Correction


def spend(rng: np.random.Generator, calibrated: float, hardness: float) -> float:
    """What an image costs: all or little, the more often all the harder the traffic."""
    odds = calibrated / (1 - calibrated) * hardness
    return float(rng.random() < odds / (1 + odds)) * 0.95 + 0.05


def run(correction: Correction, budget: float, hardness: float, images: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    spent = []
    for _ in range(images):
        spent.append(spend(rng, correction.calibrated(budget), hardness))
        correction.learn(budget, spent[-1])
    return float(np.mean(spent))


@pytest.mark.parametrize("budget", [0.12, 0.4, 0.75])
@pytest.mark.parametrize("hardness", [0.3, 1, 5])
def test_learn_holds_the_mean_after_3000_images(budget: float, hardness: float) -> None:
    correction = Correction(on=True)
    run(correction, budget, hardness, 3000, 0)
    assert run(correction, budget, hardness, 3000, 1) == pytest.approx(budget, abs=0.02)
    assert correction.error == pytest.approx(0, abs=0.04)


def test_learn_follows_traffic_that_changes() -> None:
    correction = Correction(on=True)
    run(correction, 0.4, 1, 5000, 0)
    run(correction, 0.4, 8, 3000, 1)
    assert run(correction, 0.4, 8, 3000, 2) == pytest.approx(0.4, abs=0.02)


def test_learn_several_budgets_each_hold() -> None:
    correction, rng = Correction(on=True), np.random.default_rng(0)
    spent: dict[float, list[float]] = {0.2: [], 0.45: [], 0.7: []}
    for n in range(12000):
        budget = (0.2, 0.45, 0.7)[n % 3]
        spent[budget].append(spend(rng, correction.calibrated(budget), 4))
        correction.learn(budget, spent[budget][-1])
    for budget, fractions in spent.items():
        assert np.mean(fractions[-2000:]) == pytest.approx(budget, abs=0.02)


def easy(budget: float) -> Correction:
    """What was learnt of traffic that cannot spend a budget."""
    correction = Correction(on=True)
    for _ in range(10_000):
        correction.learn(budget, 0.5)
    return correction


@pytest.mark.parametrize("budget", [0.6, 0.95, 0.97])
def test_learn_traffic_that_cannot_spend_a_budget_asks_for_nearly_all(budget: float) -> None:
    assert easy(budget).calibrated(budget) == pytest.approx(0.99, abs=1e-3)


def test_learn_traffic_that_could_not_spend_a_budget_is_forgotten_as_soon_as_any() -> None:
    correction = easy(0.95)
    run(correction, 0.95, 1, 1500, 0)
    assert run(correction, 0.95, 1, 1000, 1) == pytest.approx(0.95, abs=0.02)


def test_learn_traffic_that_could_not_spend_a_budget_moves_lower_ones_little() -> None:
    assert run(easy(0.95), 0.85, 1, 500, 0) < 0.94


def test_off_changes_nothing_but_tells_the_error() -> None:
    correction = Correction(on=False)
    for _ in range(2000):
        correction.learn(0.4, 0.9)
    assert correction.calibrated(0.4) == 0.4
    assert correction.error == pytest.approx(0.5, abs=1e-3)


def test_budget_one_is_the_plain_network_whatever_was_learnt() -> None:
    correction = Correction(on=True)
    for _ in range(2000):
        correction.learn(0.9, 0.2)
        correction.learn(1, 1)
    assert correction.calibrated(1) == 1
    assert 0.9 < correction.calibrated(0.9) < 1
