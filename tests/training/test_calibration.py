"""Tests of training/calibration.py."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from models.card import CalibrationPoint
from models.weights import folded
from tests.training.support import PREPROCESSING, chain, coloured, lively_network
from training.calibration import (
    LOWEST_PENALTY,
    calibrate,
    fit_temperature,
    likeliest_temperature,
    rising,
    widest_gap,
)
from training.measure import Policy, by_policy


def _points(*values):
    return {penalty: CalibrationPoint(penalty, fraction, 0.5) for penalty, fraction in values}


def test_rising_drops_points_that_spend_no_more_than_a_higher_penalty():
    values = ((10.0, 0.1), (3.0, 0.1), (1.0, 0.4), (0.3, 0.35), (0.1, 0.4), (0.01, 0.9))
    kept = rising(list(_points(*values).values())[::-1])
    assert [(p.penalty, p.fraction) for p in kept] == [(10.0, 0.1), (1.0, 0.4), (0.01, 0.9)]


def test_rising_of_a_network_that_never_changes_keeps_one_point():
    (kept,) = rising(list(_points((1.0, 0.5), (2.0, 0.5)).values()))
    assert kept.penalty == 2.0


def test_widest_gap_is_where_spending_changes_most():
    gap = widest_gap(_points((10.0, 0.1), (1.0, 0.2), (0.1, 0.9)))
    assert gap == pytest.approx(math.sqrt(0.1), rel=1e-3)


def test_widest_gap_does_not_halve_a_jump_for_ever():
    # Between 0.1 and 0.1001 everything jumps; there is nothing to be found in between.
    gap = widest_gap(_points((10.0, 0.1), (0.1001, 0.3), (0.1, 0.9)))
    assert gap == pytest.approx(math.sqrt(10 * 0.1001), rel=1e-3)


def test_widest_gap_counts_nothing_that_is_beyond_the_full_network_or_falls():
    # By what is asked of a budget, 0.2 to 0.5 is more than 0.9 to 2, and than 0.1 down from 0.8.
    gap = widest_gap(
        _points((100.0, 0.8), (10.0, 0.1), (1.0, 0.2), (0.1, 0.5), (0.01, 0.9), (0.001, 2))
    )
    assert gap == pytest.approx(math.sqrt(0.01 * 0.1), rel=1e-2)


@pytest.mark.parametrize("form", ["paths", "priced", "paper"])
def test_calibrate_points_are_what_the_policy_spends_and_keeps(form):
    network, images = folded(lively_network(chain(5, 8, 4, 12), form)), coloured(60)
    found = calibrate(Policy(network, images, PREPROCESSING), highest_penalty=100.0, points=9)
    assert 4 <= len(found) <= 9
    assert found[0].penalty == 100.0
    assert all(LOWEST_PENALTY <= point.penalty <= 100 for point in found)
    for low, high in pairwise(found):
        assert low.penalty > high.penalty
        assert low.fraction < high.fraction
    for point in found:
        outcome = by_policy(network, images, PREPROCESSING, point.penalty)
        assert (point.fraction, point.accuracy) == (outcome.mean_fraction, outcome.accuracy)


def test_calibrate_ends_where_nothing_is_left_to_measure():
    network, images = folded(lively_network(chain(5, 8, 4, 12), "paths")), coloured(20)
    outcome = by_policy(network, images, PREPROCESSING, 1.0)
    # Whatever the penalty, the same is spent: halving ends where two numbers are neighbours.
    found = calibrate(lambda penalty: outcome, highest_penalty=100.0, points=10_000)
    assert len(found) == 1


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_likeliest_finds_the_temperature_that_labels_were_drawn_at(true):
    random = np.random.default_rng(0)
    logits = random.normal(scale=3, size=(20_000, 5)).astype(np.float32)
    powers = np.exp(logits / true)
    shares = powers / powers.sum(axis=1, keepdims=True)
    labels = (random.random((len(logits), 1)) > shares.cumsum(axis=1)).sum(axis=1)
    assert likeliest_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_likeliest_of_answers_that_are_always_right_or_always_wrong_is_bounded():
    logits = np.array([[5, 0, 0], [0, 3, 1]], np.float32)
    assert likeliest_temperature(logits, np.array([0, 1])) == pytest.approx(1 / 16)
    assert likeliest_temperature(logits, np.array([2, 0])) == pytest.approx(16)


def test_temperature_is_the_mean_over_penalties_within_the_full_network():
    network, images = folded(lively_network(chain(5, 8, 4, 12), "paths")), coloured(60)
    policy = Policy(network, images, PREPROCESSING)
    points = calibrate(policy, highest_penalty=100.0, points=9)
    within = [p for p in points if p.fraction <= 1]
    found = [likeliest_temperature(policy(p.penalty).logits, images.labels) for p in within]
    assert min(found) <= fit_temperature(policy, points) <= max(found)
    # What no budget asks for does not count.
    beyond = replace(points[-1], penalty=-10.0, fraction=1.5)
    assert fit_temperature(policy, [*within, beyond]) == fit_temperature(policy, within)
