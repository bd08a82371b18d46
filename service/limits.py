"""What a request allows an image to cost, and what the image then gets, in which batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

# Who set the budget of an image: its request, the budget in force, the load, or its deadline.
BudgetBy = Literal["request", "service", "load", "deadline"]
BUDGET_BY: tuple[BudgetBy, ...] = get_args(BudgetBy)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request allows each of its images; times are those of `time.perf_counter`.

    Attributes:
        started: when the request began.
        budget: named by the caller, in (0, 1]; None: the budget in force.
        cap: share of the full MACs that no image exceeds; None: no limit.
        due: when the answer must have been sent, infinite if there is no deadline.
        came: when all of it had come; None: at once. What a client takes to send is not the load.
    """

    started: float
    budget: float | None = None
    cap: float | None = None
    due: float = math.inf
    came: float | None = None

    @property
    def since(self) -> float:
        """From when on the service made it wait."""
        return self.started if self.came is None else self.came


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost: a budget, the penalty that keeps it on average, a cap if any."""

    budget: float
    penalty: float
    cap: float | None
    by: BudgetBy = "request"


@dataclass(frozen=True, slots=True)
class Planned:
    """The next batch.

    Attributes:
        limits: what each of its images may cost, or why it is refused.
        seconds: that it is expected to take.
        rows: the images' places among what waits; None: the first ones.
    """

    limits: Sequence[Limits | Exception]
    seconds: float
    rows: Sequence[int] | None = None
