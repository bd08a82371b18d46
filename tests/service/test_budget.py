from __future__ import annotations

from service.budget import Auto, Budget, Fixed


def test_of_model_that_cannot_go_so_low_is_its_least() -> None:
    budget = Budget(Fixed(0.5))
    assert (budget.of(0.2), budget.of(0.6)) == (0.5, 0.6)


def test_of_auto_at_rest_is_the_ceiling() -> None:
    assert Budget(Auto(0.05, floor=0.2, ceiling=0.8)).of(0.1) == 0.8
