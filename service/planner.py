"""What the next batch is, and what each of its images may cost, decided as late as can be.

When a batch begins, the machine's speed and the whole queue are known. Of all shares of the full
network the planner takes the largest at which everything that waits, in its order, is in time:
before its deadline, and in the auto mode before the target. So under load every image gets less,
instead of the last ones getting nothing (SlackFit of SuperServe, NSDI 2025, is a relative).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.card import Card
from models.compute import FloatArray
from service.budget import Auto, Budget, Fixed
from service.correction import Correction
from service.errors import DeadlineUnreachable
from service.estimate import Estimate
from service.governor import Governor
from service.limits import Asked, BudgetBy, Limits, Planned

T = TypeVar("T")

# Shares that are weighed, from the least that a model can spend to the full network.
_LEVELS = 24
# A batch that takes so many seconds is worth its own part, which is about 2 ms with all that it
# sets in motion; a longer one holds up what comes behind. Where more than this share of the largest
# batch waits, only throughput counts.
_WORTH_S, _BACKLOG = 0.015, 0.75
# Of so many batches amid late ones, one begins with whoever is late and has waited longest.
_LATE_TURN = 2
# What was learnt while something was disturbed may refuse all by which it would be corrected: after
# so long without news it is forgotten.
_STALE_S = 1.0
# Mean deviations to allow for: where an answer that is late is none, and where it is merely late.
_HARD, _SOFT = 4.0, 1.0
# A deadline this many times as far off as the target, or as the end of all that waits, does not
# press yet.
_FAR = 4.0


class Planner:
    """Plans the batches of one model.

    Attributes:
        estimate, correction, governor: what it knows of the machine, the images and the load.
    """

    def __init__(
        self,
        card: Card,
        budget: Budget,
        estimate: Estimate,
        correction: Correction,
        *,
        max_batch: int,
    ) -> None:
        self._card, self._budget, self._max_batch = card, budget, max_batch
        self._full = card.table().full
        self._least = max(card.min_fraction, card.min_cap)
        self._amid_late = 0
        self._news = time.perf_counter()
        self._levels = np.geomspace(self._least, 1, _LEVELS)
        self.estimate, self.correction = estimate, correction
        self.governor = Governor(card.name, card.best_budget)

    def in_force(self, *, idle: bool = False) -> float:
        """The budget of a request that names none now."""
        mode = self._budget.mode
        if isinstance(mode, Auto):
            value = self.governor.in_force(mode, time.perf_counter(), idle=idle)
        else:
            value = mode.budget
        return max(value, self._card.min_fraction)

    def at_rest(self) -> float:
        """The budget of a request that names none where there is time."""
        return self._at_rest(self._budget.mode)

    def plan(self, waiting: Sequence[Asked], now: float) -> Planned:
        """Decide on the next batch.

        Args:
            waiting: all that waits, at least one, the oldest first.
            now: by `time.perf_counter`.
        """
        mode = self._budget.mode
        if isinstance(mode, Fixed) and all(asked.due == math.inf for asked in waiting):
            first = waiting[: self._max_batch]
            limits = _of_each(first, lambda asked: self._limits(asked, mode, 1.0))
            shares = np.array([limit.budget for limit in limits])
            seconds = self.estimate.batch() + np.cumsum(self.estimate.rows(shares))
            count = self._worth(len(waiting), seconds)
            return Planned(limits[:count], float(seconds[count - 1]))
        if isinstance(mode, Auto) and not self._presses(waiting, mode, now):
            late = self._late(waiting, mode, now)
            if late.any():
                return self._plan_behind(waiting, mode, late, now)
        return self._plan_in_time(waiting, mode, now)

    def check(
        self, asked: Asked, waiting: Sequence[Asked], places: int, busy_s: float, now: float
    ) -> None:
        """Refuse at once what cannot be in time even at the least compute.

        Args:
            waiting: what is ahead of it.
            places: images that are about to wait too, this request's among them.
            busy_s: seconds until the batch that is running ends.
            now: by `time.perf_counter`.

        Raises:
            DeadlineUnreachable: its deadline is too near.
        """
        if asked.due == math.inf:
            return
        mode = self._budget.mode
        shares = np.array([self._range(one, mode)[0] for one in (*waiting, *[asked] * places)])
        needed = busy_s + self._needed_s(shares)
        idle = not waiting and not busy_s
        if now + needed > asked.due and idle and self._forgets(now):
            needed = self._needed_s(shares)
        if now + needed > asked.due:
            raise _unreachable(asked, now + needed)

    def hurries(self, asked: Asked) -> bool:
        """Whether an image has a time to keep, its own or that of the auto mode."""
        return asked.due < math.inf or isinstance(self._budget.mode, Auto)

    def learn(self, limits: Sequence[Limits], macs: Sequence[int], seconds: float) -> None:
        """See what a batch cost and how long it took."""
        self._news = time.perf_counter()
        fractions = np.array(macs) / self._full
        self.estimate.learn(fractions, seconds)
        for limit, fraction in zip(limits, fractions.tolist(), strict=True):
            if limit.cap is None:
                self.correction.learn(limit.budget, fraction)

    def answered(self, decode_s: float, after_s: float, total_s: float) -> None:
        """See an answer leave.

        Args:
            decode_s: seconds that it was decoded for before it was queued, 0 if it was not.
            after_s: seconds since its batch ended.
            total_s: seconds since its request had come.
        """
        self._news = time.perf_counter()
        if decode_s:
            self.estimate.decode.add(decode_s)
        self.estimate.after.add(after_s)
        mode = self._budget.mode
        if isinstance(mode, Auto):
            # Before it was read a request waited as well, for the same event loop and about as long
            # as its answer.
            self.governor.answered(mode, after_s + total_s)

    def _needed_s(self, shares: FloatArray) -> float:
        """Seconds until images of these shares (N,) are answered, if nothing is before them."""
        batches = math.ceil(len(shares) / self._max_batch)
        work = float(self.estimate.rows(shares).sum()) + batches * self.estimate.batch()
        return work + self.estimate.decode.mean + self.estimate.after.mean

    def _forgets(self, now: float) -> bool:
        """Forget what was learnt of times if there was no news of them for a while."""
        if now - self._news < _STALE_S:
            return False
        self._news = now
        self.estimate.forget()
        return True

    def _presses(self, waiting: Sequence[Asked], mode: Auto, now: float) -> bool:
        """Whether a deadline is so near that all must be served in their order."""
        first_due = min(asked.due for asked in waiting)
        if first_due == math.inf:
            return False
        needed_s = self._needed_s(np.full(len(waiting), self._least))
        return first_due < now + _FAR * max(mode.target_s, needed_s)

    def _plan_behind(
        self, waiting: Sequence[Asked], mode: Auto, late: npt.NDArray[np.bool_], now: float
    ) -> Planned:
        """Where some are late whatever happens, all get the least, and the newest are first.

        In their order each would be served when it is about to be late, and so would miss the
        target by a little (adaptive LIFO). Who is late gets the places that are left, and the first
        of every second batch.
        """
        self.governor.follow(mode, self._least, now)
        behind, soon = np.flatnonzero(late).tolist(), np.flatnonzero(~late)[::-1].tolist()
        self._amid_late += 1
        first = 1 if self._amid_late % _LATE_TURN == 0 else 0
        rows = [*behind[:first], *soon, *behind[first:]][: self._max_batch]
        taken = [waiting[row] for row in rows]
        limits = _of_each(taken, lambda asked: self._limits(asked, mode, self._least))
        shares = np.array([limit.budget for limit in limits])
        seconds = self.estimate.batch() + float(self.estimate.rows(shares).sum())
        return Planned(limits, seconds, rows)

    def _plan_in_time(self, waiting: Sequence[Asked], mode: Fixed | Auto, now: float) -> Planned:
        hard = np.array([asked.due for asked in waiting]) - self.estimate.after.high(_HARD)
        low, high = np.array(_of_each(waiting, lambda asked: self._range(asked, mode))).T
        shares = np.clip(self._levels[:, None], low, high)
        rows, batch = self.estimate.rows(shares, _SOFT), self.estimate.batch(_SOFT)
        # All is reckoned as where late is merely late. By as much as more is to be allowed for
        # elsewhere, the time until then is taken to be shorter.
        more = self.estimate.factor.high(_HARD) / self.estimate.factor.high(_SOFT)
        hopeless, cheapest = _hopeless(now + more * batch, more * rows[0], hard)
        if hopeless.all() and self._forgets(now):
            return self._plan_in_time(waiting, mode, now)
        due = np.minimum(now + (hard - now) / more, self._soft_dues(waiting, mode))
        rows[:, hopeless], due[hopeless] = 0, math.inf
        batches = np.arange(len(waiting)) // self._max_batch + 1
        ends = now + np.cumsum(rows, axis=1) + batches * batch
        in_time = (ends <= due).all(axis=1)
        level = float(self._levels[np.flatnonzero(in_time)[-1]] if in_time.any() else self._least)
        if isinstance(mode, Auto):
            # Below the floor are only those who say so themselves, and want to be in time.
            level = min(level, self.governor.follow(mode, level, now))
        taken = np.where(hopeless, 0, np.clip(level, low, high))
        seconds = batch + np.cumsum(self.estimate.rows(taken, _SOFT) * ~hopeless)
        count = self._count(now + seconds, due, self._worth(len(waiting), seconds))
        first = waiting[:count]
        limits = _of_each(first, lambda asked: self._limits(asked, mode, level))
        decided = [
            _unreachable(asked, cheapest[row]) if hopeless[row] else limits[row]
            for row, asked in enumerate(first)
        ]
        expected = float((self.estimate.rows(taken) * ~hopeless)[:count].sum())
        return Planned(decided, self.estimate.batch() + expected)

    def _soft_dues(self, waiting: Sequence[Asked], mode: Fixed | Auto) -> FloatArray:
        if isinstance(mode, Fixed):
            return np.full(len(waiting), math.inf)
        aim_s = self.governor.aim_s(mode) - 2 * self.estimate.after.mean
        return np.array([asked.since + aim_s for asked in waiting])

    def _late(self, waiting: Sequence[Asked], mode: Auto, now: float) -> npt.NDArray[np.bool_]:
        """(N,) which will be behind the target even if they are in the next batch."""
        rows = np.full(self._max_batch, self._least)
        batch_s = self.estimate.batch(_SOFT) + float(self.estimate.rows(rows, _SOFT).sum())
        ready = now + batch_s + 2 * self.estimate.after.high(_SOFT)
        return np.array([asked.since for asked in waiting]) < ready - mode.target_s

    def _worth(self, waiting: int, seconds: FloatArray) -> int:
        """How many of what waits may share a batch, for their own good and that of those behind.

        Args:
            seconds: (N,) that a batch takes which ends with this row.
        """
        most = min(waiting, self._max_batch)
        if waiting > _BACKLOG * self._max_batch:
            return most
        return min(int(np.searchsorted(seconds, _WORTH_S)) + 1, most)

    def _count(self, ready: FloatArray, due: FloatArray, size: int) -> int:
        """How many rows may share the first batch, so that the first ones need not wait too long.

        Args:
            ready: (N,) when a batch that ends with this row is done.
            due: (N,) when the row must be.
            size: the most.
        """
        in_time = ready[:size] <= np.minimum.accumulate(due[:size])
        return int(np.flatnonzero(in_time)[-1]) + 1 if in_time.any() else size

    def _range(self, asked: Asked, mode: Fixed | Auto) -> tuple[float, float]:
        """The least and the most that an image may be planned to spend."""
        named = self._wanted(asked, mode)
        floor = 0.0
        if isinstance(mode, Auto):
            floor = min(max(mode.floor, self._card.min_fraction), named)
        if asked.due == math.inf:
            return floor or named, named
        # It is kept by a cap, which may be more than what is named, as that is a mean.
        most = 1.0 if asked.cap is None else asked.cap
        return min(max(floor, self._least), most), most

    def _wanted(self, asked: Asked, mode: Fixed | Auto) -> float:
        """The budget of an image if there is time."""
        if asked.budget is not None:
            return asked.budget
        if isinstance(mode, Fixed) and asked.due < math.inf:
            return 1.0
        return self._at_rest(mode)

    def _at_rest(self, mode: Fixed | Auto) -> float:
        rest = mode.at_rest(self._card.best_budget) if isinstance(mode, Auto) else mode.budget
        return max(rest, self._card.min_fraction)

    def _limits(self, asked: Asked, mode: Fixed | Auto, level: float) -> Limits:
        """What an image may cost if there is time for this share of the full MACs."""
        low, high = self._range(asked, mode)
        level = min(max(level, low), high)
        wanted = self._wanted(asked, mode)
        budget, cap = max(min(wanted, level), self._card.min_fraction), asked.cap
        if asked.due < math.inf:
            # The mean is not enough: this one image must be in time.
            cap = min(level, math.inf if cap is None else cap)
        by: BudgetBy = "service"
        if budget == asked.budget:
            by = "request"
        elif asked.due < math.inf:
            by = "deadline"
        elif isinstance(mode, Auto):
            by = "load"
        return Limits(budget, self._penalty(budget), cap, by)

    def _penalty(self, budget: float) -> float:
        return self._card.penalty(max(self.correction.calibrated(budget), self._card.min_fraction))


def _of_each(waiting: Sequence[Asked], tell: Callable[[Asked], T]) -> list[T]:
    """What is told of each; most ask for the same, of which it is found out once."""
    told: dict[tuple[float | None, float | None, bool], T] = {}
    kinds = [(asked.budget, asked.cap, asked.due < math.inf) for asked in waiting]
    for kind, asked in zip(kinds, waiting, strict=True):
        if kind not in told:
            told[kind] = tell(asked)
    return [told[kind] for kind in kinds]


def _hopeless(
    start: float, rows: FloatArray, hard: FloatArray
) -> tuple[npt.NDArray[np.bool_], list[float]]:
    """Which rows are late even if all take their least, and when each would be ready.

    Those that are late are taken out, and delay nobody behind them.
    """
    late, ends = np.zeros(len(rows), bool), []
    for row, (seconds, due) in enumerate(zip(rows.tolist(), hard.tolist(), strict=True)):
        ends.append(start + seconds)
        late[row] = ends[-1] > due
        if not late[row]:
            start += seconds
    return late, ends


def _unreachable(asked: Asked, ready: float) -> DeadlineUnreachable:
    allowed, needed = (1e3 * (end - asked.started) for end in (asked.due, ready))
    return DeadlineUnreachable(
        f"deadline_ms is {allowed:.4g}: with what waits already, the cheapest answer would take "
        f"about {needed:.0f}: allow more, or ask again later"
    )
