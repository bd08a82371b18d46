"""Tests of training/evaluation.py."""

import io
import json
import shutil
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from models import card as cards
from models.bundle import Bundle, read_bundle
from models.card import CalibrationPoint
from training import evaluation
from training.data import load_test, load_train
from training.errors import ConfigError
from training.evaluation import (
    at_budget,
    check_budgets,
    evaluate,
    measure_budgets,
    network_of,
    picture,
    table,
)
from training.measure import by_policy
from training.splits import data_of


@pytest.fixture
def bundle(fitted):
    return read_bundle(fitted / "bundle")


@pytest.fixture
def images(bundle, fitted, pictures):
    card = bundle.card
    return load_test(
        str(pictures), card.preprocessing, names=card.labels, cache=fitted / "cache"
    )  # fmt: skip


def test_test_images_set_aside_from_other_images_than_were_trained_on_raises(
    photos, bundle, tmp_path
):
    root, cache = photos(train={"cat": 10, "dog": 10, "emu": 10}), tmp_path / "cache"
    preprocessing = bundle.card.preprocessing
    trained = load_train(str(root), preprocessing, held_out=3, seed=0, cache=cache)
    card = replace(bundle.card, data=data_of(str(root), *trained))
    assert len(evaluation.test_images(card, str(root), cache)) == 6
    shutil.copy(root / "dog" / "000.png", root / "cat" / "000a.png")
    with pytest.raises(ConfigError, match=r"'.*photos' has no test split, and has changed since"):
        evaluation.test_images(card, str(root), cache)


@pytest.mark.parametrize("change", [{"labels": ("dog", "cat", "emu")}, {"data": {"held_out": 12}}])
def test_held_out_images_of_a_card_of_other_classes_or_without_counts_raises(
    bundle, fitted, pictures, change
):
    places = str(pictures), fitted / "cache"
    assert len(evaluation.held_out_images(bundle.card, *places)) == 12
    with pytest.raises(ConfigError, match="has other classes or training images than those"):
        evaluation.held_out_images(replace(bundle.card, **change), *places)


def test_at_budget_asks_the_calibrated_penalty(bundle, images):
    network, card = network_of(bundle), bundle.card
    outcome = at_budget(network, card, images, 0.6)
    expected = by_policy(network, images, card.preprocessing, card.penalty(0.6))
    assert np.array_equal(outcome.widths, expected.widths)
    assert np.array_equal(outcome.fraction, expected.fraction)


def test_at_budget_one_is_the_plain_network_without_the_agent(bundle, images):
    outcome = at_budget(network_of(bundle), bundle.card, images, 1.0)
    assert (outcome.widths == 4).all()
    assert (outcome.fraction == 1).all()


def test_measure_budgets_rise_and_end_with_one(bundle, images):
    network, card = network_of(bundle), bundle.card
    points = measure_budgets(network, card, images, [0.8, 0.6])
    assert [point.budget for point in points] == [0.6, 0.8, 1.0]
    outcome = at_budget(network, card, images, 0.8)
    spread = np.sqrt(((outcome.fraction - outcome.fraction.mean()) ** 2).mean())
    assert points[1] == cards.TestPoint(
        0.8, outcome.fraction.mean(), pytest.approx(spread), outcome.right.sum() / len(images)
    )


def test_evaluate_writes_table_json_and_picture(bundle, fitted, pictures, tmp_path, capsys):
    evaluate(bundle.path, str(pictures), [0.6], fitted / "cache", tmp_path / "report")
    printed = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert json.loads(printed[-1]) == report
    assert report["images"] == 60
    assert report["digest"] == bundle.digest
    # The same numbers as `fit` put in the card.
    told = {p.budget: p for p in bundle.card.test}
    for point in report["points"]:
        assert cards.TestPoint(**point) == told[point["budget"]]
    accuracy = told[0.6].accuracy
    assert any(line.startswith("| 0.6 ") and f"{accuracy:.2%}" in line for line in printed)
    with Image.open(tmp_path / "report" / "curve.png") as curve:
        assert curve.format == "PNG"
        assert min(curve.size) > 300


def test_check_budgets_out_of_reach_names_the_lowest(bundle):
    low = bundle.card.min_fraction
    check_budgets(bundle.card, [low, 1.0])
    for budget in (low - 0.001, 1.01, float("nan")):
        with pytest.raises(ConfigError, match=rf"budget {budget} is out of reach.* {low} to 1"):
            check_budgets(bundle.card, [0.9, budget])


def test_table_gives_each_budgets_compute_and_accuracy(bundle):
    lines = table(bundle.card, [cards.TestPoint(0.5, 0.4912, 0.1, 0.875)], 80).splitlines()
    macs = 0.4912 * bundle.card.table().full / 1e6
    assert lines[-1] == f"| 0.5 | 0.491 | 0.100 | {macs:.1f} | 87.50% |"
    assert "80 test images" in lines[0]


def test_picture_changes_with_what_was_measured(bundle):
    card = replace(bundle.card, calibration=(CalibrationPoint(1.0, 0.5, 0.5),))
    one = picture(card, [cards.TestPoint(0.5, 0.5, 0.0, 0.5)])
    other = picture(
        card, [cards.TestPoint(0.5, 0.5, 0.0, 0.9), cards.TestPoint(1.0, 1.0, 0.0, 0.95)]
    )
    assert Image.open(io.BytesIO(one)).tobytes() != Image.open(io.BytesIO(other)).tobytes()


def test_picture_is_the_same_whatever_the_user_likes(bundle):
    points = [cards.TestPoint(0.5, 0.5, 0.0, 0.5), cards.TestPoint(1.0, 1.0, 0.0, 0.9)]
    plain = picture(bundle.card, points)
    with mpl.rc_context({"savefig.dpi": 50, "lines.linewidth": 9, "font.size": 20}):
        assert picture(bundle.card, points) == plain


def test_network_of_computes_with_the_bundles_rounded_weights(bundle, images):
    plain = network_of(bundle)
    tensors = {name: value.copy() for name, value in bundle.tensors.items()}
    tensors["head.0.bias"] += np.array([1e3, 0, 0], tensors["head.0.bias"].dtype)
    changed = network_of(Bundle(bundle.card, tensors, bundle.path, ""))
    ours = at_budget(plain, bundle.card, images, 1.0)
    theirs = at_budget(changed, bundle.card, images, 1.0)
    assert theirs.accuracy == pytest.approx(1 / 3)
    assert ours.accuracy > theirs.accuracy
