"""Tests of training/recalibrate.py."""

from dataclasses import replace

import pytest
from safetensors.numpy import load_file

from models.bundle import WEIGHTS, read_bundle, write_bundle
from training.__main__ import main
from training.errors import ConfigError
from training.recalibrate import recalibrate


def test_recalibrate_keeps_the_weights_and_finds_what_fit_found(fitted, pictures, tmp_path, capsys):
    bundle = read_bundle(fitted / "bundle")
    points = bundle.card.calibration[::2]
    spoilt = replace(bundle.card, calibration=points, temperature=1.0, test=(), files={})
    write_bundle(tmp_path / "spoilt", spoilt, bundle.tensors, b"")
    out = tmp_path / "mended"
    flags = ["--data", str(pictures), "--cache", str(fitted / "cache"), "--out", str(out)]
    assert main(["calibrate", str(tmp_path / "spoilt"), *flags]) == 0
    mended = read_bundle(out)
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "spoilt" / WEIGHTS).read_bytes()
    assert mended.card.calibration == bundle.card.calibration
    assert mended.card.temperature == bundle.card.temperature
    assert mended.card.test == bundle.card.test[-1:]  # it had no budgets to measure but 1
    assert mended.card.name == "mended"
    told = mended.card.training["recalibration"]
    assert told["points"] == bundle.card.training["calibration"]["points"]
    assert "mended, " in capsys.readouterr().out


def test_recalibrate_as_many_points_as_asked(fitted, pictures, tmp_path):
    recalibrate(fitted / "bundle", str(pictures), 3, fitted / "cache", tmp_path / "few")
    card = read_bundle(tmp_path / "few").card
    assert len(card.calibration) <= 3
    assert card.training["recalibration"]["points"] == 3
    assert [point.budget for point in card.test] == [
        point.budget for point in read_bundle(fitted / "bundle").card.test
        if point.budget >= card.min_fraction
    ]  # fmt: skip


def test_recalibrate_again_takes_as_many_points_as_it_was_trained_to_have(
    fitted, pictures, tmp_path
):
    trained = read_bundle(fitted / "bundle").card
    places = str(pictures), fitted / "cache"
    for bundle, points, out in ((fitted / "bundle", 2, "few"), (tmp_path / "few", 0, "again")):
        recalibrate(bundle, places[0], points, places[1], tmp_path / out)
    again = read_bundle(tmp_path / "again").card
    assert again.training["calibration"] == trained.training["calibration"]
    assert again.calibration == trained.calibration


def test_recalibrate_of_an_older_card_adds_the_digest(fitted, pictures, tmp_path):
    card = read_bundle(fitted / "bundle").card
    data = {name: value for name, value in card.data.items() if name != "digest"}
    tensors = load_file(fitted / "bundle" / WEIGHTS)
    write_bundle(tmp_path / "older", replace(card, data=data, files={}), tensors)
    recalibrate(tmp_path / "older", str(pictures), 2, fitted / "cache", tmp_path / "new")
    assert read_bundle(tmp_path / "new").card.data == card.data


@pytest.mark.parametrize("points", [1, -3])
def test_recalibrate_too_few_points_refused(points, fitted, pictures, tmp_path):
    with pytest.raises(ConfigError, match=rf"--points is {points}: it must be at least 2, or 0"):
        recalibrate(fitted / "bundle", str(pictures), points, fitted / "cache", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_recalibrate_other_data_or_a_folder_that_exists_refused(fitted, pictures, tmp_path):
    cache = fitted / "cache"
    with pytest.raises(ConfigError, match=r"was trained on .*, not other: only there"):
        recalibrate(fitted / "bundle", str(tmp_path / "other"), 0, cache, tmp_path / "new")
    with pytest.raises(ConfigError, match="exists: name a new folder"):
        recalibrate(fitted / "bundle", str(pictures), 0, cache, tmp_path)
