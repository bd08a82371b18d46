from __future__ import annotations

import pytest

from service.ewma import Ewma


def test_add_first_value_replaces_what_is_unknown() -> None:
    unknown, known = Ewma(), Ewma(1.0)
    for mean in (unknown, known):
        mean.add(5)
    assert unknown.mean == 5
    assert 1 < known.mean < 2


def test_high_allows_for_the_mean_deviation() -> None:
    steady, straying = Ewma(), Ewma()
    for number in range(1000):
        steady.add(3)
        straying.add(2 if number % 2 else 4)
    assert steady.high(4) == 3
    assert straying.high(0) == pytest.approx(3, abs=0.1)
    assert straying.high(2) == pytest.approx(5, abs=0.1)
