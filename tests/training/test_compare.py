"""Tests of training/compare.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from models import backbones
from models.bundle import read_bundle
from models.compute import path_macs
from models.weights import folded
from tests.training.support import SIZE, coloured, lively_network
from training import compare
from training.measure import Outcome, along


@pytest.fixture
def network():
    return folded(lively_network(backbones.build("mcifarnet", 3, width=0.25, image_size=SIZE)))


def _outcome(fraction, accuracy, images=100):
    right = np.arange(images) < accuracy * images
    return Outcome(np.ones((images, 2), np.int64), right, np.full(images, fraction))


@pytest.mark.parametrize(
    ("fraction", "accuracy"), [(0.2, 0.5), (0.3, 0.55), (0.4, 0.6), (0.85, 0.84), (1.0, 0.9)]
)
def test_mixture_lies_between_the_two_neighbours(fraction, accuracy):
    outcomes = [_outcome(0.2, 0.5), _outcome(0.4, 0.6), _outcome(0.7, 0.78), _outcome(1.0, 0.9)]
    assert compare.mixture(outcomes, fraction) == pytest.approx(accuracy)


@pytest.mark.parametrize("fraction", [0.15, 0.3, 0.5, 0.8, 0.95])
def test_random_paths_spend_what_was_asked_in_different_ways(network, fraction):
    paths = compare.random_paths(network, 5000, fraction, seed=1)
    spent = path_macs(paths, network.table, agent=False) / network.table.full
    assert spent.mean() == pytest.approx(fraction, abs=0.01)
    assert paths.shape == (5000, 8)
    assert (paths[:, 0] == 4).all()
    assert len(np.unique(paths, axis=0)) > 30


def test_random_paths_same_seed_same_paths(network):
    one, same, other = (compare.random_paths(network, 50, 0.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_uniform_path_prunes_all_but_the_first_layer(network):
    assert compare.uniform_path(network, 2).tolist() == [[4] + [2] * 7]


def test_measure_gives_every_rival_the_compute_of_ours(network, fitted, monkeypatch):
    card = read_bundle(fitted / "bundle").card
    images = coloured(300)
    sent = []

    def noted(network, images, preprocessing, paths):
        outcome = along(network, images, preprocessing, paths)
        sent.append((paths, outcome))
        return outcome

    monkeypatch.setattr(compare, "along", noted)
    bundle = SimpleNamespace(card=card)
    (row,) = compare.measure(bundle, network, images, [0.6], seed=0)
    *uniform, (shuffled, of_shuffled), (drawn, of_drawn) = sent
    ours = compare.at_budget(network, card, images, 0.6)

    assert (row.ours, row.fraction) == (ours.accuracy, ours.mean_fraction)
    assert row.paths == len({tuple(path) for path in ours.widths.tolist()}) > 3
    # The same paths, as often, but not each with its own image.
    assert sorted(shuffled.tolist()) == sorted(ours.widths.tolist())
    assert not np.array_equal(shuffled, ours.widths)
    assert row.shuffled == of_shuffled.accuracy
    spent = path_macs(drawn, network.table, agent=False).mean() / network.table.full
    assert spent == pytest.approx(ours.mean_fraction, abs=0.04)
    assert row.random == of_drawn.accuracy
    assert [path.tolist() for path, _ in uniform] == [[[4] + [w] * 7] for w in range(1, 5)]
    assert row.uniform == compare.mixture([outcome for _, outcome in uniform], row.fraction)


def test_compare_prints_the_table_and_writes_json(fitted, pictures, tmp_path, capsys):
    compare.compare(
        fitted / "bundle", str(pictures), [0.6, 1.0], fitted / "cache", tmp_path, seed=3
    )  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "compare.json").read_text())
    assert json.loads(printed[-1]) == report
    assert report["seed"] == 3
    cheap, full = report["rows"]
    assert any(f"**{cheap['ours']:.2%}**" in line for line in printed)
    # At budget 1 all are the plain network.
    test = read_bundle(fitted / "bundle").card.test[-1]
    assert full["ours"] == full["uniform"] == full["shuffled"] == test.accuracy
    assert (full["fraction"], full["paths"]) == (1.0, 1)
    assert cheap["fraction"] < 1
