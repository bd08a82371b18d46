from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load.outcome import over_time, percentiles, summarise
from tests.benchmarks.support import GIVEN_UP, outcome

LABELS = np.array([0, 1, 2])


RUN = outcome(
    due=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    sent=[0.0, 1.5, 2.0, 3.0, 4.0, 5.0],
    done=[0.01, 2.0, 2.02, 3.001, 4.1, 5.1],
    status=[200, 200, 200, 429, 504, 0],
    image=[0, 1, 2, 0, 1, 2],
    answer=[0, 1, 0, np.nan, np.nan, np.nan],
    fraction=[0.5, 0.5, 0.2, np.nan, np.nan, np.nan],
    total_ms=[9, 10, 11, np.nan, np.nan, np.nan],
    decode_ms=[1, 1, 1, np.nan, np.nan, np.nan],
    inference_ms=[2, 2, 2, np.nan, np.nan, np.nan],
)


def test_latency_counts_from_when_a_request_was_due() -> None:
    assert RUN.latency_ms[1] == pytest.approx(1000)


@pytest.mark.parametrize(("seconds", "lasted"), [(0.5, 1.0), (2.0, 2.0)])
def test_run_lasts_until_its_last_answer_whatever_was_given_up(
    seconds: float, lasted: float
) -> None:
    assert GIVEN_UP.lasted_s(seconds) == lasted


def test_summary_counts_refused_late_and_broken_as_missed() -> None:
    found = summarise(RUN, LABELS, seconds=6, target_ms=50)
    assert (found.refused, found.late, found.errors, found.lost) == (1, 1, 1, 3)
    assert found.within == pytest.approx(2 / 6)
    assert (found.offered, found.answered) == (1.0, 0.5)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.fraction == pytest.approx(0.4)
    assert found.overhead_ms == 7


def test_summary_of_a_part_ignores_the_rest() -> None:
    found = summarise(RUN, LABELS, 1, 50, part=RUN.columns["due"] < 1)
    assert (found.requests, found.within, found.accuracy) == (1, 1.0, 1.0)


def test_summary_of_nothing_answered_is_not_a_number() -> None:
    found = summarise(RUN, LABELS, 1, 50, part=RUN.columns["due"] > 2.5)
    assert found.within == 0
    assert np.isnan([found.p95_ms, found.accuracy, found.fraction, found.overhead_ms]).all()


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles(np.arange(1.0, 101.0)) == (50, 90, 95, 99)
    assert percentiles(np.array([1.0, 9.0])) == (1, 9, 9, 9)
    assert np.isnan(percentiles(np.array([]))).all()


def test_lag_leaves_out_what_waited_for_a_connection() -> None:
    run = outcome(due=[0.0, 0.0], sent=[0.001, 5.0], waited=[np.nan, 1])
    assert run.lag_ms == pytest.approx((1, 1, 1, 1))


def test_over_time_has_a_value_for_each_step() -> None:
    course = over_time(RUN, seconds=6, step_s=2, target_ms=50)
    assert course.seconds.tolist() == [1, 3, 5]
    assert course.offered.tolist() == [1, 1, 1]
    assert course.answered.tolist() == [0.5, 1, 0]
    assert course.within.tolist() == [0.5, 0.5, 0]
    np.testing.assert_allclose(course.p95_ms, [1000, 20, np.nan])
    np.testing.assert_allclose(course.fraction, [0.5, 0.2, np.nan])
