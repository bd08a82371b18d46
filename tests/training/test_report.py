"""Tests of training/report.py."""

import json
import re

import numpy as np
import pytest

from models.bundle import read_bundle
from tests.training.support import coloured
from training.__main__ import main
from training.data import load_test
from training.errors import ConfigError
from training.evaluation import at_budget, network_of
from training.report import focus_of, learnt, samples, some


@pytest.fixture
def flags(fitted, pictures, tmp_path):
    places = ["--cache", fitted / "cache", "--out", tmp_path / "report", "--threads", 1]
    flags = ["report", fitted / "bundle", "--data", pictures, "--budgets", 0.6, 0.8, *places]
    return [str(flag) for flag in flags]


def test_report_writes_a_page_that_shows_all_pictures(flags, fitted, pictures, tmp_path, capsys):
    assert main([*flags, "--images", "30", "--seed", "5"]) == 0
    folder = tmp_path / "report"
    numbers = json.loads((folder / "report.json").read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == numbers

    page = (folder / "report.md").read_text()
    shown = re.findall(r"!\[.+\]\((.+)\)", page)
    assert {*shown, "report.json", "report.md"} == {path.name for path in folder.iterdir()}
    assert len(shown) == 6
    assert "Measured on 30, drawn with seed 5, of the 60 test images" in page
    assert (numbers["images"], numbers["of"], numbers["seed"]) == (30, 60, 5)

    bundle = read_bundle(fitted / "bundle")
    card, cache = bundle.card, fitted / "cache"
    every = load_test(str(pictures), card.preprocessing, names=card.labels, cache=cache)
    ours = at_budget(network_of(bundle), card, some(every, 30, 5), 0.6)
    focus = numbers["budgets"][0]
    assert numbers["focus"] == focus["budget"] == 0.6
    assert (focus["fraction"], focus["accuracy"]) == (ours.mean_fraction, ours.accuracy)
    assert f"| 0.6 | {ours.mean_fraction:.3f} |" in page
    assert f"{ours.accuracy:.2%}" in page
    assert ours.fraction[numbers["cheapest"][0]] == ours.fraction.min()
    assert ours.fraction[numbers["dearest"][0]] == ours.fraction.max()


def test_report_with_a_runs_log_also_shows_how_its_agent_learnt(flags, fitted, tmp_path):
    log = fitted / "work" / "log.jsonl"
    assert main([*flags, "--images", "8", "--log", str(log)]) == 0
    folder = tmp_path / "report"
    assert "![How the agent learnt](learning.png)" in (folder / "report.md").read_text()
    assert (folder / "learning.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    wanted = [r for r in records if r["stage"] == "agent" and "reward" in r]
    assert learnt(log) == wanted
    assert wanted


@pytest.mark.parametrize("text", ["", "{", '{"stage": "finetune", "step": 1, "loss": 2}'])
def test_report_with_a_log_of_no_agent_is_refused_at_once(text, flags, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text(text)
    assert main([*flags, "--log", str(log)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--log {log}" in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--images", "-3"], "--images is -3"),
        (["--budgets", "1"], "--budgets has none below 1"),
        (["--budgets", "0.5", "1.5"], "budget 1.5 is out of reach"),
        (["--data", "/no/where"], "/no/where"),
    ],
)
def test_report_refuses_what_it_cannot_use(flags, tmp_path, capsys, extra, named):
    capsys.readouterr()
    assert main([*flags, *extra]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("budgets", "focus"),
    [([0.15, 0.25, 0.4, 0.6], 0.4), ([0.8, 0.5, 1.0], 0.5), ([0.1, 0.35], 0.35)],
)
def test_focus_is_the_budget_nearest_to_two_fifths(budgets, focus):
    assert focus_of(budgets) == focus


def test_focus_of_the_full_network_alone_says_so():
    with pytest.raises(ConfigError, match="none below 1"):
        focus_of([1.0])


def test_some_draws_by_seed_and_keeps_the_order():
    images = coloured(50)
    one, same, other = (some(images, 20, seed).rows for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(set(one)) == 20
    assert (np.diff(one) > 0).all()
    # A smaller draw is part of a larger one.
    assert set(some(images, 5, 1).rows) < set(one)


@pytest.mark.parametrize("count", [0, 50, 51])
def test_some_of_all_is_all(count):
    images = coloured(50)
    assert np.array_equal(some(images, count, 1).rows, images.rows)


def test_samples_go_from_the_image_to_the_strongest_corruption():
    image = coloured(1).pixels
    strip = samples(image, "blur")
    assert strip.shape == (12, 6 * 14, 3)
    assert np.array_equal(strip[:, 1:13], image[0])
    sharpness = [
        np.abs(np.diff(part[:, 1:13].astype(int), axis=0)).sum()
        for part in np.split(strip, 6, axis=1)
    ]
    assert sharpness[0] == max(sharpness)
    assert sharpness[-1] == min(sharpness)
