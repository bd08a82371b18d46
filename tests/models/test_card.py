"""What a card tells of budgets, penalties and caps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from models.card import CalibrationPoint, penalty_at, penalty_scale
from tests.models.cards import FORMS, card_of, make_card
from tests.models.support import tiny_backbone


@pytest.mark.parametrize(
    ("budget", "penalty"),
    [(0.5, 2.0), (0.9, 0.5), (0.95, 0.5), (0.7, 1.0), (1, 0.0), (1.0, 0.0)],
)
def test_penalty_of_a_budget_is_interpolated_in_its_logarithm(budget, penalty):
    assert make_card().penalty(budget) == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("penalty", [-0.1, -1e-4, 1e-4, 0.02, 3.0])
def test_penalty_scale_there_and_back_is_the_same(penalty):
    assert penalty_at(penalty_scale(penalty)) == pytest.approx(penalty)


def test_penalty_at_zero_is_not_the_zero_that_asks_no_agent():
    assert 0 < penalty_at(0.0) < 1e-6


def test_penalty_between_prices_of_either_sign_rises_with_the_scale():
    points = [CalibrationPoint(0.5, 0.3, 0.8), CalibrationPoint(-0.5, 0.9, 0.9)]
    card = replace(make_card(), calibration=tuple(points))
    penalties = [card.penalty(budget) for budget in (0.35, 0.5, 0.6, 0.7, 0.85)]
    assert penalties == sorted(penalties, reverse=True)
    assert penalties[1] > 0 > penalties[3]


def test_penalty_of_the_lowest_budget_is_about_the_highest():
    card = make_card()
    assert card.min_fraction == 0.3001
    assert card.penalty(card.min_fraction) == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize("budget", [0.3, 0.0, -1.0, 1.0001, math.nan, math.inf])
def test_penalty_of_a_budget_out_of_reach_raises(budget):
    with pytest.raises(ValueError, match=r"outside \[0.3001, 1\]"):
        make_card().penalty(budget)


@pytest.mark.parametrize("form", FORMS)
def test_min_cap_leaves_room_for_the_cheapest_path_and_little_more(form):
    card = card_of(form, tiny_backbone())
    table = card.table()
    assert 0 <= card.min_cap * table.full - table.least <= 1e-4 * table.full


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ((0.7, 0.9, 0.9013, 0.902), 0.9),
        ((0.7, 0.8, 0.902, 0.902), 0.9),
        # The first of those that are as good, which may be the cheapest of all.
        ((0.9, 0.9, 0.9, 0.9), 0.3001),
        ((0.7, 0.9, 0.901, 0.9001), 0.5),
        # Only the dearest is as good, so nothing less than the full network.
        ((0.7, 0.8, 0.85, 0.9), 1),
        ((0.9, 0.8, 0.7, 0.6), 0.3001),
        # No budget reaches the dearest; those just below 1 go some of the way.
        ((0.7, 0.9, 0.9, 0.904), 0.5),
    ],
)
def test_best_budget_is_the_least_that_is_as_right_as_any(accuracies, best):
    shares = (0.30004, 0.5, 0.9, 1.4)
    points = [
        CalibrationPoint(penalty, share, accuracy)
        for penalty, share, accuracy in zip((8, 2, 0.5, 0.1), shares, accuracies, strict=True)
    ]
    assert replace(make_card(), calibration=tuple(points)).best_budget == best


def test_best_budget_beyond_the_full_network_is_the_full_network():
    points = (
        CalibrationPoint(8.0, 0.3, 0.5),
        CalibrationPoint(0.5, 1.1, 0.9),
        CalibrationPoint(0.1, 1.4, 0.9),
    )
    assert replace(make_card(), calibration=points).best_budget == 1
