from __future__ import annotations

import numpy as np

from service.ranking import probabilities, ranking


def test_probabilities_of_large_logits_are_finite_and_sum_to_one() -> None:
    shares = probabilities(np.array([1e30, 0, -1e30], np.float32))
    np.testing.assert_array_equal(shares, [1, 0, 0])
    shares = probabilities(np.array([1, 2, 3], np.float32))
    np.testing.assert_allclose(shares, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())


def test_ranking_is_largest_first_and_of_equals_the_first() -> None:
    logits = np.array([1, 3, 0, 3], np.float32)
    assert ranking(logits, 3) == [1, 3, 0]
    assert ranking(logits, 99) == [1, 3, 0, 2]
