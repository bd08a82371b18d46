from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from models.card import CalibrationPoint, Card
from service.budget import Auto, Budget, Fixed
from service.correction import Correction
from service.costs import Cost
from service.errors import DeadlineUnreachable
from service.estimate import Estimate
from service.limits import Asked, Limits, Planned
from service.planner import Planner

# A batch takes nothing, and a row 10 ms for all of the network.
TABLE = [Cost(b, n, 10 * b * n) for b in (0.1, 0.5, 1.0) for n in (1, 4, 16)]

HALF = Fixed(0.5)


def planner(card: Card, mode: Fixed | Auto = HALF, *, max_batch: int = 4) -> Planner:
    return Planner(card, Budget(mode), Estimate(TABLE), Correction(on=True), max_batch=max_batch)


def decided(planner: Planner, *waiting: Asked, now: float = 0) -> list:
    return list(planner.plan(waiting, now).limits)


def test_plan_fixed_gives_each_what_it_asked(card: Card) -> None:
    rows = decided(planner(card), Asked(0), Asked(0, 0.3, 0.8), Asked(0, 1))
    assert [(row.budget, row.cap, row.by) for row in rows] == [
        (0.5, None, "service"),
        (0.3, 0.8, "request"),
        (1, None, "request"),
    ]
    assert rows[1].penalty == pytest.approx(card.penalty(0.3))
    assert rows[2].penalty == 0


def test_plan_fixed_takes_no_more_than_a_batch_and_tells_its_time(card: Card) -> None:
    planned = planner(card).plan([Asked(0)] * 9, 0)
    assert (len(planned.limits), planned.rows) == (4, None)
    assert planned.seconds == pytest.approx(0.02)


@pytest.mark.parametrize("mode", [Fixed(1), Auto(10, floor=0.2)])
def test_plan_while_few_wait_a_batch_is_short_and_where_many_do_it_is_full(
    card: Card, mode: Fixed | Auto
) -> None:
    some = planner(card, mode, max_batch=16)
    sizes = [len(decided(some, *[Asked(0, 1)] * waiting)) for waiting in (1, 2, 8, 12, 13, 40)]
    assert sizes == [1, 2, 2, 2, 13, 16]
    # At 2 ms a row, eight are worth it.
    assert len(decided(some, *[Asked(0, 0.2)] * 12)) == 8


def test_plan_penalty_follows_the_correction(card: Card) -> None:
    some = planner(card)
    for _ in range(100):
        some.learn([Limits(0.5, 0.1, None)], [card.table().full], 0.01)
    assert decided(some, Asked(0, 0.5))[0].penalty > card.penalty(0.5)


def test_learn_from_capped_images_corrects_nothing(card: Card) -> None:
    some = planner(card)
    some.learn([Limits(0.5, 0.1, 0.5)] * 2, [1, 1], 0.01)
    assert decided(some, Asked(0, 0.5))[0].penalty == pytest.approx(card.penalty(0.5))


@pytest.mark.parametrize(
    ("due", "budget", "share"),
    [(1.0, None, 1), (0.008, None, 0.8), (0.004, None, 0.4), (0.004, 0.3, 0.3), (0.004, 1, 0.4)],
)
def test_plan_deadline_gets_the_largest_budget_that_makes_it(
    card: Card, due: float, budget: float | None, share: float
) -> None:
    (row,) = decided(planner(card), Asked(0, budget, None, due))
    assert row.budget == pytest.approx(share, rel=0.08)
    assert row.budget <= share
    assert row.by == ("request" if budget == 0.3 else "deadline")
    # Its own image must be in time, not only the mean.
    assert row.cap <= due / 0.01 + 1e-9


def test_plan_deadline_a_lower_cap_stays(card: Card) -> None:
    (row,) = decided(planner(card), Asked(0, None, 0.3, 1.0))
    assert (row.budget, row.cap) == (0.3, 0.3)


def test_plan_deadline_shares_the_time_with_what_waits_behind(card: Card) -> None:
    rows = decided(planner(card), *[Asked(0, None, None, 0.02)] * 4)
    assert [row.budget for row in rows] == pytest.approx([0.5] * 4, rel=0.08)
    # Twelve rows, in three batches: the last ones need the first to be cheap.
    rows = decided(planner(card), *[Asked(0, None, None, 0.04)] * 12)
    assert [row.budget for row in rows] == pytest.approx([1 / 3] * 4, rel=0.08)


def test_plan_deadline_that_cannot_be_kept_refused_and_the_others_not_slowed(card: Card) -> None:
    late, good = decided(planner(card), Asked(0, due=0.0005), Asked(0, due=0.0095))
    assert isinstance(late, DeadlineUnreachable)
    assert "deadline_ms is 0.5" in str(late)
    assert good.budget == pytest.approx(0.9, rel=0.1)


def test_plan_deadline_cuts_the_batch_so_that_the_first_need_not_wait(card: Card) -> None:
    waiting = [Asked(0, due=0.011), *[Asked(0, 1.0)] * 3]
    rows = decided(planner(card), *waiting)
    assert len(rows) == 1
    assert rows[0].budget == 1


def test_plan_auto_deadline_does_not_go_below_the_floor_but_below_a_lower_budget(
    card: Card,
) -> None:
    some = planner(card, Auto(1, floor=0.5))
    for asked, share in (
        (Asked(0, due=0.0065), 0.65),
        (Asked(0, 0.4, due=0.0045), 0.4),
        (Asked(0, cap=0.4, due=0.0045), 0.4),
    ):
        assert decided(some, asked)[0].cap == pytest.approx(share, rel=0.08)
    assert isinstance(decided(some, Asked(0, due=0.0045))[0], DeadlineUnreachable)
    now = time.perf_counter()
    some.check(Asked(now, due=now + 0.05), [], 8, 0.0, now)
    with pytest.raises(DeadlineUnreachable):  # as at the floor it takes 10 ms more
        some.check(Asked(now, due=now + 0.05), [], 12, 0.0, now)


def test_plan_auto_gives_all_at_rest_and_less_to_each_when_more_wait(card: Card) -> None:
    budgets = []
    for count in (1, 8, 16, 200):
        some = planner(card, Auto(0.05, floor=0.2))
        budgets.append(decided(some, *[Asked(0)] * count)[0].budget)
    assert budgets[0] == 1
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[1] == pytest.approx(0.045 / 0.08, rel=0.08)
    assert budgets[-1] == pytest.approx(0.2)


def test_plan_auto_at_rest_gives_what_the_model_is_best_at_or_what_is_named(card: Card) -> None:
    half = CalibrationPoint(0.5, 0.5, 0.9)
    card = replace(card, calibration=(card.calibration[0], half, card.calibration[1]))
    some = planner(card, Auto(10, floor=0.2))
    rows = decided(some, Asked(0), Asked(0, 0.9), Asked(0, 0.3))
    assert [(row.budget, row.by) for row in rows] == [
        (0.5, "load"),
        (0.9, "request"),
        (0.3, "request"),
    ]
    assert some.in_force(idle=True) == some.at_rest() == 0.5
    # A ceiling is for all, and a floor above what is best is kept.
    some = planner(card, Auto(10, floor=0.2, ceiling=0.8))
    assert [row.budget for row in decided(some, Asked(0), Asked(0, 0.9))] == [0.8, 0.8]
    assert some.in_force(idle=True) == some.at_rest() == 0.8
    some = planner(card, Auto(10, floor=0.7))
    assert decided(some, Asked(0))[0].budget == some.in_force(idle=True) == some.at_rest() == 0.7


def test_plan_auto_a_named_budget_is_an_upper_bound(card: Card) -> None:
    some = planner(card, Auto(0.05, floor=0.2), max_batch=16)
    rows = decided(some, Asked(0, 0.3), *[Asked(0, 0.9)] * 8)
    assert (rows[0].budget, rows[0].by) == (0.3, "request")
    assert rows[1].budget < 0.7
    assert rows[1].by == "load"


def test_plan_auto_late_ones_bring_it_to_the_floor(card: Card) -> None:
    some = planner(card, Auto(0.05, floor=0.3))
    assert decided(some, Asked(0), now=1)[0].budget == pytest.approx(0.3)


def test_plan_auto_behind_the_newest_are_first_and_all_get_the_least(card: Card) -> None:
    def planned(*waiting: Asked) -> Planned:
        return planner(card, Auto(0.1, floor=0.2), max_batch=4).plan(waiting, 0.25)

    late, soon = [Asked(0), Asked(0.01)], [Asked(0.2 + n / 100) for n in range(5)]
    assert planned(*late, *soon).rows == [6, 5, 4, 3]
    assert [row.budget for row in planned(*late, *soon).limits] == [0.2] * 4
    # Where those that can be in time leave places, the late ones have them, the oldest first.
    assert planned(*late, soon[0]).rows == [2, 0, 1]
    assert planned(*late).rows == [0, 1]


def test_plan_auto_behind_every_second_batch_begins_with_a_late_one(card: Card) -> None:
    some = planner(card, Auto(0.1, floor=0.2), max_batch=2)
    waiting = [Asked(0), Asked(0.01), Asked(0.2), Asked(0.21)]
    first = [some.plan(waiting, 0.25).rows for _ in range(4)]
    assert first == [[3, 2], [0, 3]] * 2


@pytest.mark.parametrize(
    ("mode", "waiting"),
    [
        (Fixed(1), [Asked(0), Asked(0.2)]),
        (Auto(0.1, floor=0.2), [Asked(0.2), Asked(0.24)]),
        # A deadline is kept or refused, in their order.
        (Auto(0.1, floor=0.2), [Asked(0), Asked(0.2, due=0.6)]),
    ],
)
def test_plan_keeps_the_order_where_none_is_late_or_a_deadline_is_to_be_kept(
    card: Card, mode: Fixed | Auto, waiting: list[Asked]
) -> None:
    assert planner(card, mode).plan(waiting, 0.25).rows is None


def test_plan_auto_what_a_client_took_to_send_is_not_the_load(card: Card) -> None:
    some = planner(card, Auto(0.1, floor=0.2))
    (row,) = decided(some, Asked(0, came=0.25), now=0.25)
    assert row.budget == 1
    assert decided(some, Asked(0), now=0.25)[0].budget == 0.2


def test_in_force_falls_under_load_and_returns(card: Card) -> None:
    some, now = planner(card, Auto(0.05, floor=0.2)), time.perf_counter()
    assert some.in_force() == 1
    for n in range(100):
        some.plan([Asked(now - 1)] * 9, now - 1 + n / 100)
    assert some.in_force() < 0.4
    assert some.at_rest() == 1
    assert some.in_force(idle=True) < 0.7


def test_in_force_fixed_not_below_the_least(card: Card) -> None:
    some = planner(card, Fixed(0.01))
    assert some.in_force() == some.at_rest() == card.min_fraction


def test_check_refuses_what_the_queue_makes_late(card: Card) -> None:
    some, now = planner(card), time.perf_counter()
    asked = Asked(now, due=now + 0.03)
    some.check(asked, [Asked(now)] * 3, 1, 0.0, now)
    some.check(Asked(now), [Asked(now)] * 99, 1, 5.0, now)
    with pytest.raises(DeadlineUnreachable, match=r"deadline_ms is 30: .* about [4-9]\d"):
        some.check(asked, [Asked(now)] * 8, 1, 0.0, now)
    with pytest.raises(DeadlineUnreachable):
        some.check(asked, [], 1, 0.05, now)
    # What has a deadline itself can be cheap.
    some.check(
        asked, [Asked(now, due=math.inf if n < 2 else now + 1) for n in range(8)], 1, 0.0, now
    )


def test_what_refuses_all_by_which_it_would_be_corrected_is_forgotten(card: Card) -> None:
    some = planner(card)
    # A stall, seen by all of a batch.
    for _ in range(16):
        some.answered(0.9, 0.9, 2.0)
    now = time.perf_counter()
    later = now + 2
    asked = Asked(later, due=later + 0.5)
    with pytest.raises(DeadlineUnreachable):
        some.check(Asked(now, due=now + 0.5), [], 1, 0.0, now)
    for waiting, busy_s in (([Asked(now)], 0.0), ([], 0.1)):
        with pytest.raises(DeadlineUnreachable):  # there will be news
            some.check(asked, waiting, 1, busy_s, later)
    some.check(asked, [], 1, 0.0, later)


def test_plan_forgets_what_makes_all_late(card: Card) -> None:
    some = planner(card)
    for after_s in (0.0, 2.0) * 4:  # its mean would do, but not what it deviates by
        some.answered(0.0, after_s, 1.0)
    now = time.perf_counter()
    assert isinstance(decided(some, Asked(now, due=now + 1.5), now=now)[0], DeadlineUnreachable)
    later = now + 2
    assert decided(some, Asked(later, due=later + 1.5), now=later)[0].by == "deadline"


def test_hurries_with_a_deadline_or_in_the_auto_mode(card: Card) -> None:
    assert not planner(card).hurries(Asked(0))
    assert planner(card).hurries(Asked(0, due=1))
    assert planner(card, Auto(10, floor=0.2)).hurries(Asked(0))


FAR = Asked(0.2, due=600)


def test_plan_auto_a_far_off_deadline_changes_neither_the_order_nor_who_is_late(card: Card) -> None:
    some, waiting = planner(card, Auto(0.1, floor=0.2)), [Asked(0), FAR]
    assert some.plan(waiting, 0.25).rows == [1, 0]
    assert [row.budget for row in decided(some, *waiting, now=0.25)] == [0.2, 0.2]
    # Until there is just time enough to serve all in their order.
    assert some.plan(waiting, FAR.due - 0.1).rows is None


def test_plan_auto_a_far_off_deadline_leaves_the_margins_of_others(card: Card) -> None:
    some = planner(card, Auto(0.1, floor=0.2), max_batch=16)
    for n in range(40):  # a machine of which nobody knows how fast it is
        some.estimate.learn(np.full(4, 0.5), 0.01 if n % 2 else 0.03)
    plain, far = (decided(some, *[Asked(0.2)] * 9, last, now=0.2) for last in (Asked(0.2), FAR))
    assert plain[0].budget < 0.8
    assert [row.budget for row in far] == [row.budget for row in plain]
    # Of what must be in time, more is kept.
    near = decided(some, *[Asked(0.2)] * 9, Asked(0.2, due=0.3), now=0.2)
    assert near[0].budget < plain[0].budget
