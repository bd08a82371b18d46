from __future__ import annotations

import pytest

from service.budget import Auto


@pytest.mark.parametrize(
    ("floor", "ceiling", "at_rest", "most"),
    [(0.2, None, 0.5, 1.0), (0.6, None, 0.6, 1.0), (0.2, 0.8, 0.8, 0.8), (0.2, 0.3, 0.3, 0.3)],
)
def test_auto_at_rest_gives_what_is_best_unless_a_ceiling_says_what(
    floor: float, ceiling: float | None, at_rest: float, most: float
) -> None:
    auto = Auto(0.05, floor, ceiling)
    assert (auto.at_rest(0.5), auto.most) == (at_rest, most)
