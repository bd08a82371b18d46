from __future__ import annotations

import pytest

from service.errors import TooBusy
from service.inflight import Inflight


def test_hold_is_given_back_whatever_happens() -> None:
    inflight = Inflight(10)

    def work() -> None:
        with inflight.hold() as held:
            held.add(4)
            held.add(6)
            assert inflight.held == 10
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert inflight.held == 0


def test_add_past_the_limit_refused_and_not_counted() -> None:
    inflight = Inflight(10)
    with inflight.hold() as first, inflight.hold() as second:
        first.add(7)
        with pytest.raises(TooBusy, match=r"hold 7 bytes and 4 more .* limit of 10") as refusal:
            second.add(4)
        assert refusal.value.retry_after_s
        second.add(3)
        assert inflight.held == 10
    assert inflight.held == 0
