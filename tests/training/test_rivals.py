"""Tests of training/rivals.py."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from models import backbones
from models.card import Card
from models.compute import path_macs
from models.weights import folded
from tests.training.support import COLOURS, PREPROCESSING, SIZE, chain, coloured, lively_network
from training import rivals
from training.calibration import calibrate
from training.evaluation import at_budget
from training.measure import Outcome, Policy, along
from training.rivals import (
    Stages,
    cascades,
    cascades_of_three,
    measure,
    mixture,
    random_paths,
    uniform_path,
)


def _outcome(fraction, accuracy, images=100):
    right = np.arange(images) < accuracy * images
    return Outcome(np.ones((images, 2), np.int64), right, np.full(images, fraction))


# Mixtures


@pytest.mark.parametrize(
    ("fraction", "accuracy"),
    [(0.1, 0.5), (0.2, 0.5), (0.3, 0.556), (0.4, 0.612), (0.85, 0.84), (1.0, 0.9)],
)
def test_mixture_lies_between_two_neighbours_and_leaves_out_a_bad_path(fraction, accuracy):
    # At 0.4, a lot between the paths at 0.2 and 0.7 is right more often than the path there.
    outcomes = [_outcome(0.2, 0.5), _outcome(0.7, 0.78), _outcome(0.4, 0.6), _outcome(1.0, 0.9)]
    assert mixture(outcomes, fraction).mean() == pytest.approx(accuracy)


def test_mixture_is_the_best_of_any_two_by_lot():
    rng = np.random.default_rng(0)
    points = list(zip(rng.uniform(0.1, 1, 9), rng.uniform(0.4, 0.9, 9), strict=True))
    outcomes = [_outcome(x, y, 10_000) for x, y in points]
    points = [(o.mean_fraction, o.accuracy) for o in outcomes]
    for fraction in np.linspace(min(points)[0], max(points)[0], 13):
        around = [
            np.interp(fraction, *zip(*pair, strict=True))
            for pair in combinations(sorted(points), 2)
            if pair[0][0] <= fraction <= pair[1][0]
        ]
        assert mixture(outcomes, fraction).mean() == pytest.approx(max(around))


# Cascades


def _answers(fraction, seed, images=40):
    """Made-up logits of three classes; class 0 is right."""
    logits = np.random.default_rng(seed).normal(size=(images, 3)).astype(np.float32) * 3
    return Outcome(
        np.ones((images, 2), np.int64),
        logits.argmax(axis=1) == 0,
        np.full(images, fraction),
        logits,
    )


def _stages(first, others):
    """Of answers that are not blended."""
    return Stages(first, others, [0.0], np.zeros(40, np.int64))


def _always(fraction, right, images=40):
    outcome = _answers(fraction, 9, images)
    return Outcome(outcome.widths, np.full(images, right), outcome.fraction, outcome.logits)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.7, 1.0])
def test_cascade_sends_on_those_whose_two_best_classes_are_closest(fraction):
    first, others = _answers(0.1, 0), [_answers(0.4, 1), _answers(1.0, 2), _answers(0.6, 3)]
    found = []
    for second in others:
        shares = np.exp(first.logits.astype(float))
        shares /= shares.sum(axis=1, keepdims=True)
        best, next_best = np.sort(shares, axis=1)[:, :0:-1].T
        doubtful = sorted(range(40), key=lambda i: np.log(best[i] / next_best[i]))
        count = min(round((fraction - 0.1) / second.mean_fraction * 40), 40)
        right = [(second if i in doubtful[:count] else first).right[i] for i in range(40)]
        found.append(right)
    assert np.array_equal(cascades(_stages(first, others), fraction), found)


def test_cascade_that_blends_counts_the_answer_before_for_a_third():
    first, second, third = _answers(0.1, 0), _answers(0.4, 1), _answers(1.0, 2)
    stages = Stages(first, [second, third], [1 / 3], np.zeros(40, np.int64))
    (two,) = cascades(replace(stages, others=[second]), 0.5)
    both = 2 * second.logits + first.logits
    assert np.array_equal(two, both.argmax(axis=1) == 0)
    assert not np.array_equal(two, second.right)
    # It may blend or not.
    either = replace(stages, others=[second], blends=[0.0, 1 / 3])
    (plain,) = cascades(replace(stages, others=[second], blends=[0.0]), 0.5)
    assert np.array_equal(cascades(either, 0.5), [plain, two])
    # All are sent to the second, and all but a tenth of them to the third.
    three = max(cascades_of_three(stages, 1.4), key=np.mean)
    alone = replace(stages, others=[third])
    assert three.mean() >= max(right.mean() for right in cascades(alone, 1.4))
    ends = 2 * third.logits + both / 3
    last = np.argsort(rivals.margins(replace(second, logits=both / 3)), kind="stable")[:36]
    of_three = np.where(np.isin(np.arange(40), last), ends.argmax(axis=1) == 0, two)
    assert three.mean() >= of_three.mean()


@pytest.mark.parametrize("fraction", np.linspace(0.1, 1.1, 21))
def test_cascade_needs_no_more_compute_than_given(fraction):
    # Right are those that are sent on, so the accuracy tells how many they were.
    (right,) = cascades(_stages(_always(0.1, False), [_always(0.8, True)]), fraction)
    found = right.mean()
    half_an_image = 0.8 / 40 / 2
    assert 0.1 + 0.8 * found <= fraction + half_an_image + 1e-9
    assert 0.1 + 0.8 * found >= min(fraction, 0.9) - half_an_image - 1e-9


def test_cascade_of_three_sends_the_seconds_most_doubtful_on_to_a_third():
    first, third = _always(0.1, False), _always(1.0, True)
    # The second is right about half of the images, and those it is sure of.
    logits = np.zeros((40, 3), np.float32)
    logits[::2, 0] = 9
    second = Outcome(first.widths, np.arange(40) % 2 == 0, np.full(40, 0.2), logits)
    # All go on to the second and the other half to the third: 0.1 + 0.2 + 0.5.
    stages = _stages(first, [third, second])
    assert any(right.all() for right in cascades_of_three(stages, 0.8))
    # By one step alone no more than 70 % could go to the third.
    found = cascades(stages, 0.8)
    assert max(right.mean() for right in found) == pytest.approx(0.7)


@pytest.mark.parametrize("fraction", np.linspace(0.1, 1.3, 13))
def test_cascades_of_three_begin_with_those_of_two(fraction):
    stages = _stages(_answers(0.1, 0), [_answers(0.4, 1), _answers(1.0, 2)])
    found, two = cascades_of_three(stages, fraction), cascades(stages, fraction)
    assert np.array_equal(found[: len(two)], two)
    assert len(found) == len(two) + len(rivals.GOING_ON)


# Paths


@pytest.fixture(params=["mcifarnet", "resnet20"])
def network(request):
    return folded(lively_network(backbones.build(request.param, 3, width=0.25, image_size=SIZE)))


@pytest.mark.parametrize("fraction", [0.15, 0.3, 0.5, 0.8, 0.95])
def test_random_paths_spend_what_was_asked_in_different_ways(network, fraction):
    paths = random_paths(network, 5000, fraction, seed=1)
    spent = path_macs(paths, network.table, agent=False) / network.table.full
    backbone = network.backbone
    assert spent.mean() == pytest.approx(fraction, abs=0.01)
    assert paths.shape == (5000, backbone.n_layers)
    assert len(np.unique(paths, axis=0)) > 30
    for layer in filter(backbone.tied, range(backbone.n_layers)):
        assert np.array_equal(paths[:, layer], paths[:, layer - 2])


def test_random_paths_same_seed_same_paths(network):
    one, same, other = (random_paths(network, 50, 0.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_uniform_path_prunes_every_layer(network):
    assert uniform_path(network, 2).tolist() == [[2] * network.backbone.n_layers]


# All together

IMAGES = coloured(150)
# Of one class, so that another path does best on them.
HELD_OUT = IMAGES.subset(IMAGES.labels == 2)


def _bundled(form, views="both"):
    """A network that was never trained, with a calibrated card."""
    network = folded(lively_network(chain(5, 8, 4, SIZE), form, views=views))
    points = calibrate(Policy(network, IMAGES, PREPROCESSING), highest_penalty=10.0, points=8)
    card = Card(
        "chain", tuple(COLOURS), network.backbone, network.agent.config, PREPROCESSING, points
    )
    return card, network


@pytest.mark.parametrize(("views", "budget"), [("both", 0.7), ("image", 0.9)])
def test_measure_gives_every_rival_the_compute_of_ours(views, budget):
    card, network = _bundled("paths", views)
    (row,) = measure(card, network, IMAGES, HELD_OUT, [budget], seed=0)
    ours = at_budget(network, card, IMAGES, budget)
    assert (row.budget, row.fraction) == (budget, ours.mean_fraction)
    assert list(row.accuracy) == [
        "ours", "cascade", "cascade, calibrated", "cascade of 3", "cascade of 3, calibrated",
        "fixed", "uniform", "random", "shuffled",
    ]  # fmt: skip
    assert (row.accuracy["ours"], row.error["ours"]) == (ours.accuracy, 0)
    assert row.paths == len({tuple(path) for path in ours.widths.tolist()}) > 1

    uniform, known = (
        [along(network, of, PREPROCESSING, uniform_path(network, width)) for width in range(1, 5)]
        for of in (IMAGES, HELD_OUT)
    )
    by_lot = mixture(uniform, row.fraction)
    assert row.accuracy["uniform"] == by_lot.mean()
    apart = ours.right - by_lot
    assert row.error["uniform"] == pytest.approx(np.std(apart) / np.sqrt(len(IMAGES)))
    paths = [along(network, IMAGES, PREPROCESSING, np.array([path])) for path in card.agent.paths]
    assert row.accuracy["fixed"] >= mixture(paths, row.fraction).mean() - 1e-9
    drawn = random_paths(network, len(IMAGES), row.fraction, seed=0)
    assert row.accuracy["random"] == along(network, IMAGES, PREPROCESSING, drawn).accuracy

    blends = sorted({0, card.agent.blend})
    stages, calibrating = (
        Stages(first, [*more, *Policy(network, of, PREPROCESSING).alone()[1:]], blends, of.labels)
        for of, (first, *more) in ((IMAGES, uniform), (HELD_OUT, known))
    )
    for name, kind in (("cascade", cascades), ("cascade of 3", cascades_of_three)):
        found = [right.mean() for right in kind(stages, row.fraction)]
        assert row.accuracy[name] == max(found)
        # The held-out images choose another one than the test images would.
        chosen = int(np.argmax([right.mean() for right in kind(calibrating, row.fraction)]))
        assert row.accuracy[f"{name}, calibrated"] == found[chosen]
    assert row.accuracy["cascade, calibrated"] < row.accuracy["cascade"]


def test_measure_shuffled_has_the_same_ways_but_not_each_with_its_own_image(monkeypatch):
    card, network = _bundled("paths")
    went, by_routes = [], Policy.by_routes

    def noted(policy, routes):
        outcome = by_routes(policy, routes)
        went.append((routes.tolist(), outcome.accuracy))
        return outcome

    monkeypatch.setattr(Policy, "by_routes", noted)
    (row,) = measure(card, network, IMAGES, HELD_OUT, [0.7], seed=0)
    ways = Policy(network, IMAGES, PREPROCESSING)(card.penalty(0.7)).routes.tolist()
    found = [accuracy for routes, accuracy in went if sorted(routes) == sorted(ways) != routes]
    assert found == [row.accuracy["shuffled"]] != [row.accuracy["ours"]]


@pytest.mark.parametrize(("views", "ways"), [("both", 2**4), ("image", 0)])
def test_fixed_may_be_any_path_and_any_way_over_two_views(monkeypatch, views, ways):
    card, network = _bundled("paths", views)
    mixed = []

    def noted(outcomes, fraction):
        mixed.append(outcomes)
        return mixture(outcomes, fraction)

    monkeypatch.setattr(rivals, "mixture", noted)
    measure(card, network, IMAGES, HELD_OUT, [0.9], seed=0)
    fixed, _ = mixed
    taken = [outcome.routes for outcome in fixed if outcome.routes is not None]
    assert len(fixed) - len(taken) == len(card.agent.paths) == 5
    assert all((route == route[0]).all() and route[0, 0] for route in taken)
    assert len({tuple(route[0]) for route in taken}) == len(taken) == ways


def test_measure_layer_by_layer_has_no_fixed_paths():
    card, network = _bundled("priced")
    rows = measure(card, network, IMAGES, HELD_OUT, [card.min_fraction, 1.0], seed=0)
    assert all("fixed" not in row.accuracy for row in rows)
    assert all(one.fraction < other.fraction for one, other in pairwise(rows))


def test_measure_at_budget_one_all_but_random_ways_are_the_plain_network():
    card, network = _bundled("paths")
    (row,) = measure(card, network, IMAGES, HELD_OUT, [1.0], seed=0)
    assert (row.fraction, row.paths) == (1.0, 1)
    full = along(network, IMAGES, PREPROCESSING, uniform_path(network, 4)).accuracy
    assert {row.accuracy[name] for name in ("ours", "uniform", "shuffled")} == {full}
    assert row.accuracy["fixed"] >= full  # several fixed looks may have more than one
