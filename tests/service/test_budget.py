from __future__ import annotations

from service.budget import Budget


def test_set_replaces_the_budget_in_force() -> None:
    budget = Budget(0.5)
    budget.set(0.3)
    assert budget.value == 0.3


def test_of_model_that_cannot_go_so_low_is_its_least() -> None:
    budget = Budget(0.5)
    assert (budget.of(0.2), budget.of(0.6)) == (0.5, 0.6)
