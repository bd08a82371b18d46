"""The budget in force: fixed, or following the load; set by the operator while the service runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fixed:
    """A share of the full network's MACs in (0, 1], the same until it is set anew."""

    budget: float


@dataclass(frozen=True, slots=True)
class Auto:
    """As much compute as lets requests be answered in time.

    Attributes:
        target_s: seconds within which at least 95 of 100 requests are to be answered.
        floor: the least share of the full MACs to go down to, in (0, 1].
        ceiling: the most, where there is time; None: what a request names, or else what the model
            is best at (`Card.best_budget`).
    """

    target_s: float
    floor: float
    ceiling: float | None = None

    @property
    def most(self) -> float:
        """The most that any request may be given."""
        return 1.0 if self.ceiling is None else self.ceiling

    def at_rest(self, best: float) -> float:
        """What a request that names no budget is given where there is time."""
        return max(best, self.floor) if self.ceiling is None else self.ceiling


class Budget:
    """What is in force for all models: requests that name no budget get it.

    Attributes:
        mode: replaced whole, so that readers on other threads never see half of it.
    """

    def __init__(self, mode: Fixed | Auto) -> None:
        self.mode = mode
