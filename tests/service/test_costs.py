from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from models.card import Card
from service import costs
from service.app import create_app
from service.costs import Cost, rows_at, smoothed
from service.engines import create_engine
from service.engines.base import Result
from service.estimate import Estimate
from service.registry import read_bundles
from service.settings import Settings
from tests.service.support import BY_LAYER, make_card, serve


class SteadyEngine:
    """Takes exactly as long as it should: so long for a call, and so long for each MAC."""

    name = "steady"
    CALL_S, MAC_S = 1e-4, 1e-9

    def __init__(self, card: Card) -> None:
        self.full, self.now, self.images = card.table().full, 0.0, 0

    def run(self, images: np.ndarray, penalty: np.ndarray, cap: np.ndarray) -> Result:
        macs = np.floor(np.where(penalty == 0, 1, cap) * self.full).astype(np.int64)
        self.now += self.CALL_S + self.MAC_S * macs.sum()
        self.images += len(images)
        return Result(np.zeros((len(images), 3), np.float32), np.ones((len(images), 3)), macs)

    def clock(self) -> float:
        return self.now

    def ms(self, budget: float, batch: int) -> float:
        return 1e3 * (self.CALL_S + self.MAC_S * batch * budget * self.full)


def test_measured_costs_foretell_a_steady_engine(card: Card) -> None:
    engine = SteadyEngine(card)
    estimate = Estimate(costs.measure(engine, card, clock=engine.clock))
    for budget, batch in itertools.product((0.25, 0.5, 0.9, 1), (1, 3, 16, 40)):
        seconds = estimate.batch() + estimate.rows(np.full(batch, budget)).sum()
        assert 1e3 * seconds == pytest.approx(engine.ms(budget, batch), rel=0.15)


def test_measure_covers_every_budget_that_is_reachable_and_every_batch(card: Card) -> None:
    engine = SteadyEngine(card)
    found = [(c.budget, c.batch) for c in costs.measure(engine, card, clock=engine.clock)]
    budgets = [card.min_fraction, *(b for b in costs.BUDGETS if b > card.min_fraction)]
    assert found == list(itertools.product(budgets, costs.BATCHES))


def test_measure_on_a_slow_machine_stops_and_estimates_the_rest(card: Card) -> None:
    engine = SteadyEngine(card)
    engine.CALL_S, engine.MAC_S = 0, 1 / card.table().full  # a second for the full network
    *_, last = costs.measure(engine, card, limit_s=0.1, clock=engine.clock)
    assert engine.images == costs.LEAST_ROWS + 1
    assert (last.budget, last.batch) == (1, 16)
    assert last.ms == pytest.approx(16e3, rel=0.01)


def test_smoothed_costs_never_fall_with_budget_or_batch() -> None:
    noisy = [Cost(0.2, 1, 5), Cost(0.2, 4, 4), Cost(1, 1, 3), Cost(1, 4, 9)]
    assert smoothed(noisy) == (Cost(0.2, 1, 3), Cost(0.2, 4, 4), Cost(1, 1, 3), Cost(1, 4, 9))


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 1.0])
def test_rows_at_a_budget_spend_it_in_a_real_engine(
    settings: Settings, card: Card, tmp_path: Path, budget: float
) -> None:
    bundle = read_bundles(settings.bundles)[card.name]
    engine = create_engine(bundle, "onnx", threads=1, cache_dir=tmp_path)
    penalty, cap, share = rows_at(card.table(), budget, 32)
    images = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    spent = engine.run(images, penalty, cap).macs.mean() / card.table().full
    assert spent == pytest.approx(share, abs=1e-9)
    assert share == pytest.approx(budget, abs=0.02)


def test_rows_at_a_budget_out_of_reach_spend_the_nearest(card: Card) -> None:
    table = card.table()
    assert rows_at(table, 0.001, 8)[2] == pytest.approx(table.least / table.full)


def test_rows_at_a_budget_take_different_paths(card: Card) -> None:
    _, cap, _ = rows_at(card.table(), 0.6, 32)
    assert len(set(cap.tolist())) == len(card.agent.paths)


def test_rows_of_an_agent_that_decides_layer_by_layer_are_capped_by_the_budget() -> None:
    penalty, cap, share = rows_at(make_card(agent=BY_LAYER).table(), 0.6, 4)
    assert share == 0.6
    assert (cap == 0.6).all()
    assert (penalty < 0).all()


def test_service_measures_its_engines_before_it_is_ready(
    settings: Settings, tmp_path: Path
) -> None:
    with serve(create_app(settings.model_copy(update={"cache_dir": tmp_path}))) as client:
        (model,) = client.get("/models").json()["models"]
    assert {cost["batch"] for cost in model["costs"]} == set(costs.BATCHES)
    assert {cost["budget"] for cost in model["costs"]} >= {model["min_fraction"], 1.0}
    assert all(cost["ms"] > 0 for cost in model["costs"])
