"""Tests of training/findings.py."""

from types import SimpleNamespace

import numpy as np
import pytest

from models import backbones
from models.weights import folded
from tests.training.support import PREPROCESSING, SIZE, chain, coloured, lively_network
from training.corruptions import SETTINGS, corrupt
from training.data import Images
from training.evaluation import at_budget
from training.findings import calibration_error, find, losses, reliability, spearman
from training.measure import Outcome

CARD = SimpleNamespace(
    preprocessing=PREPROCESSING, penalty={0.4: 0.6, 0.7: 0.1}.__getitem__, temperature=1.0
)


@pytest.fixture(scope="module")
def network():
    return folded(lively_network(backbones.build("mcifarnet", 3, width=0.125, image_size=SIZE)))


@pytest.fixture(scope="module")
def images():
    return coloured(90)


@pytest.fixture(scope="module")
def found(network, images):
    return find(network, CARD, images, [0.7, 0.4], 0.4, seed=3)


@pytest.fixture(scope="module")
def ours(network, images):
    return at_budget(network, CARD, images, 0.4)


@pytest.fixture(scope="module")
def full(network, images):
    return at_budget(network, CARD, images, 1.0)


def _answers(probabilities, right):
    """What a network gave that chose label 0 with these probabilities, of two labels."""
    p = np.array(probabilities)
    logits = np.log(np.stack([p, 1 - p], axis=1)).astype(np.float32)
    n = len(p)
    return Outcome(np.ones((n, 1), np.int64), np.array(right), np.ones(n), logits)


def test_find_budgets_rise_to_the_full_network(found, ours, full):
    assert [point.budget for point in found.budgets] == [0.4, 0.7, 1.0]
    focus, _, whole = found.budgets
    assert (focus.fraction, focus.accuracy) == (ours.mean_fraction, ours.accuracy)
    assert focus.spread == pytest.approx(ours.fraction.std())
    assert focus.paths == len({tuple(path) for path in ours.widths.tolist()}) > 3
    assert focus.cheapest == np.mean(ours.fraction == min(ours.fraction))
    np.testing.assert_allclose(focus.widths, ours.widths.mean(axis=0))
    assert (whole.accuracy, whole.fraction, whole.spread) == (full.accuracy, 1.0, 0.0)
    assert (whole.widths, whole.paths, whole.correlation) == ([4.0] * 8, 1, None)


def test_find_correlates_compute_with_the_full_networks_loss(found, ours, full, images):
    expected = spearman(ours.fraction, losses(full, images))
    assert found.budgets[0].correlation == expected
    assert -1 < expected < 1


def test_find_classes_add_up_by_rising_compute(found, ours, full, images):
    assert {row.label for row in found.classes} == {"cat", "dog", "emu"}
    spent = [row.fraction for row in found.classes]
    assert spent == sorted(spent)
    for row in found.classes:
        mine = images.labels == images.names.index(row.label)
        assert row.images == mine.sum()
        assert row.fraction == pytest.approx(ours.fraction[mine].mean())
        assert row.accuracy == ours.right[mine].mean()
        assert row.full == full.right[mine].mean()
        assert row.quartiles == tuple(np.percentile(ours.fraction[mine], [25, 75]))


def test_find_order_is_by_compute(found, ours):
    assert sorted(found.order) == list(range(90))
    assert (np.diff(ours.fraction[found.order]) >= 0).all()


def test_find_deciles_are_by_the_full_networks_loss(found, ours, full, images):
    assert len(found.deciles) == 10
    hardest = np.argsort(losses(full, images))[-9:]
    assert found.deciles[-1].loss == pytest.approx(losses(full, images)[hardest].mean())
    assert found.deciles[-1].wrong == pytest.approx(1 - full.right[hardest].mean())
    assert found.deciles[-1].fraction == pytest.approx(ours.fraction[hardest].mean())
    shown = [decile.loss for decile in found.deciles]
    assert shown == sorted(shown)
    assert np.mean([decile.fraction for decile in found.deciles]) == pytest.approx(
        ours.mean_fraction
    )


@pytest.mark.parametrize("kind", SETTINGS)
def test_find_corrupts_at_the_same_penalty(found, network, images, ours, full, kind):
    rows = [row for row in found.corrupted if row.kind == kind]
    assert [row.strength for row in rows] == [0, 1, 2, 3, 4, 5]
    as_it_is, strongest = rows[0], rows[-1]
    assert (as_it_is.fraction, as_it_is.accuracy) == (ours.mean_fraction, ours.accuracy)
    assert as_it_is.full == full.accuracy
    pixels = corrupt(images.pixels, kind, 5, seed=3)
    changed = Images(pixels, images.labels, np.arange(90), images.names)
    expected = at_budget(network, CARD, changed, 0.4)
    assert (strongest.fraction, strongest.accuracy) == (expected.mean_fraction, expected.accuracy)
    assert strongest.fraction != as_it_is.fraction
    assert strongest.full == at_budget(network, CARD, changed, 1.0).accuracy


def test_find_of_some_images_of_a_set_takes_their_labels(network, images):
    some = images.subset(np.arange(5, 65))
    found = find(network, CARD, some, [0.4], 0.4, seed=3)
    assert sum(row.images for row in found.classes) == 60
    again = find(network, CARD, coloured(90).subset(np.arange(5, 65)), [0.4], 0.4, seed=3)
    assert found.corrupted == again.corrupted


def test_find_runs_each_path_once_on_the_images_as_they_are(images, monkeypatch):
    network = folded(lively_network(chain(3, 8, 4, SIZE), "paths"))
    looked, look = [], type(network).look
    monkeypatch.setattr("training.findings.SETTINGS", {})
    monkeypatch.setattr(
        type(network), "look", lambda self, *at: looked.append(at[1]) or look(self, *at)
    )
    find(network, CARD, images, [0.7, 0.4], 0.4, seed=3)
    assert looked
    assert len(set(looked)) == len(looked)


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486833),
        ([3, 1, 2, 2, 2], [5, 5, 1, 7, 5], 0.0),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2, 3], [7, 7, 7], None),
    ],
)
def test_spearman_shares_ranks_among_equals(a, b, rho):
    found = spearman(np.array(a, float), np.array(b, float))
    assert found == (rho if rho is None else pytest.approx(rho, abs=1e-6))


def test_reliability_bins_by_confidence_and_leaves_empty_ones_out():
    right = [True] * 3 + [False] + [True, False]
    low, high = reliability(_answers([0.9] * 4 + [0.55] * 2, right), 1.0)
    assert (low.share, low.confidence, low.accuracy) == (
        pytest.approx(1 / 3), pytest.approx(0.55), 0.5,
    )  # fmt: skip
    assert (high.share, high.confidence, high.accuracy) == (
        pytest.approx(2 / 3), pytest.approx(0.9), 0.75,
    )  # fmt: skip
    # 0.05 for a third of the images, 0.15 for two thirds.
    assert calibration_error([low, high]) == pytest.approx((0.05 + 2 * 0.15) / 3)


def test_reliability_of_certainty_is_one_bin():
    (only,) = reliability(_answers([1 - 1e-12] * 5, [True] * 5), 1.0)
    assert calibration_error([only]) == pytest.approx(0, abs=1e-6)


def test_losses_tell_sure_images_apart():
    logits = np.array([[30, 0], [25, 0], [0, 1]], np.float32)
    outcome = Outcome(np.ones((3, 1), np.int64), np.ones(3, bool), np.ones(3), logits)
    labels = np.array([0, 0, 0])
    images = Images(np.zeros((3, 1, 1, 3), np.uint8), labels, np.arange(3), ("a", "b"))
    surest, sure, wrong = losses(outcome, images)
    assert 0 < surest < sure < 1e-10
    assert wrong == pytest.approx(np.log(1 + np.e))
