from __future__ import annotations

import numpy as np

from service.ranking import probabilities, rankings


def test_probabilities_of_large_logits_are_finite_and_sum_to_one() -> None:
    first, second = probabilities(np.array([[1e30, 0, -1e30], [1, 2, 3]], np.float32))
    np.testing.assert_array_equal(first, [1, 0, 0])
    np.testing.assert_allclose(second, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())


def test_probabilities_at_a_low_temperature_are_sharper() -> None:
    logits = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_allclose(probabilities(logits, 0.5), probabilities(2 * logits))


def test_rankings_are_largest_first_and_of_equals_the_first() -> None:
    logits = np.array([[1, 3, 0, 3], [4, 3, 2, 1]], np.float32)
    assert rankings(logits).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
