"""Tests of training/compare.py."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.bundle import WEIGHTS, read_bundle, write_bundle
from models.card import Card
from models.weights import export, load
from tests.training.support import COLOURS, PREPROCESSING, coloured, lively_network
from training import evaluation
from training.calibration import calibrate
from training.compare import compare
from training.curves import picture
from training.errors import ConfigError
from training.evaluation import at_budget, network_of
from training.measure import Policy
from training.rivals import measure


@pytest.fixture(scope="session")
def second(fitted, tmp_path_factory):
    """Folder of a bundle like the fitted one, but of another seed and with other weights."""
    bundle = read_bundle(fitted / "bundle")
    tensors = {name: value.copy() for name, value in bundle.tensors.items()}
    tensors["head.0.bias"] += np.array([0.5, 0, 0], tensors["head.0.bias"].dtype)
    folder = tmp_path_factory.mktemp("second") / "bundle"
    write_bundle(folder, replace(bundle.card, seed=7, files={}), tensors, b"")
    return folder


@pytest.fixture(scope="session")
def layerwise(fitted, tmp_path_factory):
    """Folder of a bundle with an agent of another kind, never trained."""
    network = lively_network(read_bundle(fitted / "bundle").card.backbone, "paper")
    config, tensors = network.agent.config, export(network)
    served = load(network.backbone, config, tensors)
    points = calibrate(Policy(served, coloured(60), PREPROCESSING), highest_penalty=10.0, points=4)
    card = Card("other", tuple(COLOURS), network.backbone, config, PREPROCESSING, points)
    folder = tmp_path_factory.mktemp("layerwise") / "other"
    write_bundle(folder, card, tensors, b"")
    return folder


@pytest.fixture
def compared(fitted, pictures, tmp_path, capsys):
    """Compares bundles and gives the report and the printed lines."""

    def run(bundles, budgets, **rivals):
        out = tmp_path / "report"
        compare(bundles, str(pictures), budgets, fitted / "cache", out, seed=3, **rivals)
        *printed, last = capsys.readouterr().out.splitlines()
        report = json.loads((out / "compare.json").read_text())
        assert json.loads(last) == report
        assert (out / "compare.md").read_text().splitlines() == printed[:-1]
        assert (out / "compare.png").read_bytes() == picture(report)
        return report, printed

    return run


def test_compare_one_bundle_gives_what_was_measured(compared, fitted, pictures):
    report, printed = compared([fitted / "bundle"], [0.6, 1.0])
    bundle = read_bundle(fitted / "bundle")
    images = evaluation.test_images(bundle.card, str(pictures), fitted / "cache")
    held_out = evaluation.held_out_images(bundle.card, str(pictures), fitted / "cache")
    rows = measure(bundle.card, network_of(bundle), images, held_out, [0.6, 1.0], 3)
    assert report["seed"] == 3
    (ours,) = report["ours"]
    assert ours["rows"] == [asdict(row) for row in rows]
    assert (ours["digest"], ours["trained_with_seed"]) == (bundle.digest, bundle.card.seed)
    for found, row in zip(report["rows"], rows, strict=True):
        assert found["accuracy"] == row.accuracy
        assert (found["fraction"], found["paths"]) == (row.fraction, row.paths)
        cells = " | ".join(f"{value:.2%}" for value in row.accuracy.values())
        line = f"| {row.budget:g} | {row.fraction:.3f} | {cells} | {row.paths} |"
        assert line in printed
        assert found["error"] == row.error
        apart = [
            f"{100 * (row.accuracy['ours'] - value):+.2f} ± {196 * row.error[name]:.2f}"
            for name, value in row.accuracy.items()
            if name != "ours"
        ]
        assert f"| {row.budget:g} | {' | '.join(apart)} |" in printed
    assert report["full"] == bundle.card.test[-1].accuracy


def test_compare_two_bundles_gives_mean_and_spread(compared, fitted, second):
    report, printed = compared([fitted / "bundle", second], [0.6])
    one, other = (ours["rows"][0] for ours in report["ours"])
    assert one != other
    (row,) = report["rows"]
    assert row["fraction"] == pytest.approx((one["fraction"] + other["fraction"]) / 2)
    for name, accuracy in row["accuracy"].items():
        both = one["accuracy"][name], other["accuracy"][name]
        assert accuracy == pytest.approx(sum(both) / 2)
        assert row["spread"][name] == pytest.approx(abs(both[0] - both[1]) / 2**0.5)
        assert any(f"{accuracy:.2%} ± {100 * row['spread'][name]:.2f}" in line for line in printed)
    apart = [one["accuracy"]["ours"] - one["accuracy"]["uniform"] for one in (one, other)]
    spread = abs(apart[0] - apart[1]) / 2**0.5
    assert row["difference_spread"]["uniform"] == pytest.approx(spread)
    last = f"{100 * np.mean(apart):+.2f} ± {196 * row['error']['uniform']:.2f} ({100 * spread:.2f})"
    assert any(f"| {last} |" in line for line in printed)
    assert report["full"] == pytest.approx(np.mean([ours["full"] for ours in report["ours"]]))
    assert "seeds [0, 7]" in printed[0]


def test_compare_another_kind_is_measured_at_what_it_spends(compared, fitted, layerwise, pictures):
    lowest = read_bundle(layerwise).card.min_fraction
    budgets = [lowest - 0.01, (1 + lowest) / 2]
    report, printed = compared([fitted / "bundle"], budgets, others=[layerwise])
    bundle = read_bundle(layerwise)
    images = evaluation.test_images(bundle.card, str(pictures), fitted / "cache")
    (other,) = report["others"]
    assert other["form"] == "paper"
    # What it cannot reach is left out; the plain network is measured in any case.
    assert [point["budget"] for point in other["points"]] == [budgets[1], 1.0]
    outcome = at_budget(network_of(bundle), bundle.card, images, budgets[1])
    assert other["points"][0]["accuracy"] == outcome.accuracy
    line = f"| other (paper) | {outcome.mean_fraction:.3f} | {outcome.accuracy:.2%} |"
    assert line in printed


def test_compare_another_kind_that_reaches_no_budget_shows_its_plain_network(
    compared, fitted, layerwise
):
    too_low = read_bundle(layerwise).card.min_fraction - 0.01
    report, _ = compared([fitted / "bundle"], [too_low], others=[layerwise])
    assert [point["budget"] for point in report["others"][0]["points"]] == [1.0]


def test_compare_another_kind_of_another_network_is_refused(compared, fitted, tmp_path):
    bundle = read_bundle(fitted / "bundle")
    card = replace(bundle.card, name="other", labels=bundle.card.labels[::-1], files={})
    write_bundle(tmp_path / "other", card, load_file(fitted / "bundle" / WEIGHTS))
    with pytest.raises(ConfigError, match="has another backbone or other classes than"):
        compared([fitted / "bundle"], [1.0], others=[tmp_path / "other"])


def test_compare_static_reports_are_told(compared, fitted, tmp_path):
    card = read_bundle(fitted / "bundle").card
    told = {"method": "l1", "fraction": 0.31, "accuracy": 0.625, "seed": 4}
    more = {"macs": 0.31 * card.table().full, "labels": card.labels}
    more |= {"data": "pictures", "images": 60, "preprocessing": asdict(card.preprocessing)}
    path = tmp_path / "static.json"
    path.write_text(json.dumps(told | more))
    report, printed = compared([fitted / "bundle"], [0.6], static=[path])
    assert report["static"] == [told]
    assert "| static: l1 | 0.310 | 62.50% |" in printed
    for wrong in ({"macs": 0.5 * more["macs"]}, {"labels": card.labels[::-1]}):
        path.write_text(json.dumps(told | more | wrong))
        with pytest.raises(ConfigError, match="give reports of the same network and data"):
            compared([fitted / "bundle"], [0.6], static=[path])
    larger = {"preprocessing": {**more["preprocessing"], "resize": 16}}
    for wrong in ({"data": "other"}, {"images": 59}, larger):
        path.write_text(json.dumps(told | more | wrong))
        with pytest.raises(ConfigError, match=r"but ours is asked 60 test images of pictures"):
            compared([fitted / "bundle"], [0.6], static=[path])


@pytest.mark.parametrize("content", [None, "{", "[]", "3", '{"method": "l1"}'])
def test_compare_unreadable_static_report_is_named(compared, fitted, tmp_path, content):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"static report .*mine\.json cannot be read"):
        compared([fitted / "bundle"], [0.6], static=[path])


def test_compare_bundles_of_different_kinds_is_refused(compared, fitted, layerwise):
    with pytest.raises(ConfigError, match="differ in nothing but their seeds"):
        compared([fitted / "bundle", layerwise], [1.0])
    with pytest.raises(ConfigError, match="a bundle is named twice"):
        compared([fitted / "bundle", fitted / "bundle"], [1.0])


def test_compare_a_bundle_and_its_recalibrated_copy_is_refused(compared, fitted, tmp_path):
    card = replace(read_bundle(fitted / "bundle").card, name="copy", seed=1, files={})
    write_bundle(tmp_path / "copy", card, load_file(fitted / "bundle" / WEIGHTS))
    with pytest.raises(ConfigError, match="a bundle is named twice, or has another's weights"):
        compared([fitted / "bundle", tmp_path / "copy"], [1.0])


def test_compare_data_that_the_last_bundle_cannot_use_is_told_before_the_first_is_measured(
    compared, fitted, second, tmp_path, monkeypatch
):
    card = read_bundle(second).card
    tensors = load_file(second / WEIGHTS)
    changed = replace(card, data={**card.data, "digest": "of another set"}, files={})
    write_bundle(tmp_path / "last", changed, tensors)
    monkeypatch.setattr("training.compare.measure", None)
    with pytest.raises(ConfigError, match="has other classes or training images than those"):
        compared([fitted / "bundle", tmp_path / "last"], [1.0])
