"""What a request allows an image to cost, and what the image then gets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# Who set the budget of an image: its request, the budget in force, the load, or its deadline.
BudgetBy = Literal["request", "service", "load", "deadline"]
BUDGET_BY: tuple[BudgetBy, ...] = ("request", "service", "load", "deadline")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request allows each of its images; times are those of `time.perf_counter`.

    Attributes:
        started: when the request began.
        budget: named by the caller, in (0, 1]; None: the budget in force.
        cap: share of the full MACs that no image exceeds; None: no limit.
        due: when the answer must have been sent, infinite if there is no deadline.
    """

    started: float
    budget: float | None = None
    cap: float | None = None
    due: float = math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost: a budget, the penalty that keeps it on average, a cap if any."""

    budget: float
    penalty: float
    cap: float | None
    by: BudgetBy = "request"
