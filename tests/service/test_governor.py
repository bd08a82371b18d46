from __future__ import annotations

import logging

import pytest

from service.budget import Auto
from service.governor import Governor

AUTO = Auto(target_s=0.05, floor=0.2)


def test_follow_down_in_tenths_of_a_second_and_up_over_seconds() -> None:
    governor = Governor("tiny")
    governor.follow(AUTO, 1, 0)
    for n in range(1, 101):
        governor.follow(AUTO, 0.3, n / 100)
    assert governor.value == pytest.approx(0.3, abs=0.05)
    for n in range(101, 301):
        governor.follow(AUTO, 1, n / 100)
    assert 0.4 < governor.value < 0.7
    assert governor.follow(AUTO, 1, 60) == 1


def test_follow_a_batch_never_gets_more_than_time_allows() -> None:
    governor = Governor("tiny")
    governor.follow(AUTO, 1, 0)
    assert governor.follow(AUTO, 0.3, 0.001) == 0.3


def test_follow_stays_between_floor_and_ceiling() -> None:
    governor, auto = Governor("tiny"), Auto(0.05, 0.2, ceiling=0.7)
    assert governor.follow(auto, 0.01, 10) == 0.2
    assert governor.follow(auto, 1, 1000) == 0.7


def test_follow_a_load_that_swings_does_not_swing_the_budget() -> None:
    governor, seen = Governor("tiny"), []
    for n in range(1000):
        governor.follow(AUTO, 1 if n % 4 else 0.4, n / 100)
        seen.append(governor.value)
    assert max(seen[500:]) - min(seen[500:]) < 0.06


def test_in_force_rises_when_idle_though_nothing_is_planned() -> None:
    governor = Governor("tiny")
    governor.follow(AUTO, 0.2, 1)
    assert governor.in_force(AUTO, 1.5, idle=False) == pytest.approx(0.2)
    assert governor.in_force(AUTO, 60, idle=True) == 1


def test_in_force_and_the_log_stop_at_what_the_model_is_best_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    governor = Governor("tiny", best=0.5)
    with caplog.at_level(logging.INFO):
        governor.follow(AUTO, 1, 0)
        assert governor.in_force(AUTO, 0, idle=False) == 0.5
        # A fall that leaves enough changes nothing for who names no budget.
        governor.follow(AUTO, 0.8, 10)
        assert (governor.in_force(AUTO, 10, idle=False), caplog.records) == (0.5, [])
        governor.follow(AUTO, 0.3, 20)
        governor.follow(AUTO, 1, 60)
    told = [(record.budget, record.before) for record in caplog.records]
    assert told == [(0.3, 0.5), (0.5, 0.3)]


def test_answered_late_aims_lower_and_in_time_comes_back() -> None:
    governor = Governor("tiny")
    first = governor.aim_s(AUTO)
    assert first < AUTO.target_s
    for _ in range(10):
        governor.answered(AUTO, 0.06)
    assert governor.aim_s(AUTO) < 0.8 * first
    for _ in range(5000):
        governor.answered(AUTO, 0.01)
    assert governor.aim_s(AUTO) == first


def test_answered_late_says_nothing_of_another_target() -> None:
    governor, other = Governor("tiny"), Auto(target_s=0.5, floor=0.2)
    first = governor.aim_s(other)
    for _ in range(10):
        governor.answered(AUTO, 0.06)
    assert governor.aim_s(other) == first


def test_follow_logs_each_change_but_not_every_step(caplog: pytest.LogCaptureFixture) -> None:
    governor = Governor("tiny")
    with caplog.at_level(logging.INFO):
        for n in range(1000):
            governor.follow(AUTO, 1 if n < 500 else 0.3, n / 100)
    changes = [record.__dict__["budget"] for record in caplog.records]
    assert 1 <= len(changes) <= 3
    assert caplog.records[0].__dict__["model"] == "tiny"
    assert changes[-1] < 0.5
