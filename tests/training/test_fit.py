"""Tests of training/fit.py and training/run.py: whole runs, from a folder of images to a bundle."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.bundle import read_bundle
from models.preprocess import preprocess
from service.engines import create_engine
from tests.training.support import COLOURS, ROOT, SETTINGS, fit_flags, save_pictures
from training.__main__ import main
from training.calibration import fit_temperature
from training.data import load_train
from training.evaluation import network_of
from training.measure import Policy, by_policy
from training.runlog import LOG, SPEED, read_log

WEIGHTS = "model.safetensors"


def _weights(folder):
    """A digest: of what differs, pytest would search the bytes for minutes."""
    return sha256((folder / "bundle" / WEIGHTS).read_bytes()).hexdigest()


def _card(folder):
    card = json.loads((folder / "bundle" / "bundle.json").read_text())
    del card["git_commit"]  # the tree may change while the tests run
    return card


def _logged(folder):
    return [{k: v for k, v in r.items() if k != SPEED} for r in read_log(folder / "work" / LOG)]


def test_fit_writes_a_bundle_that_tells_what_it_is(fitted):
    bundle = read_bundle(fitted / "bundle")
    card = bundle.card
    assert card.name == "bundle"
    assert card.labels == tuple(COLOURS)
    assert len(card.data["digest"]) == 64
    counts = {"source": "pictures", "train": 108, "held_out": 12}
    assert card.data == {**counts, "digest": card.data["digest"]}
    assert [point.budget for point in card.test][-1] == card.test[-1].fraction == 1.0
    assert card.test[-1].accuracy > 0.6
    assert card.agent.form == "paths"
    assert len(card.agent.paths) == SETTINGS["paths"]["count"] + 2
    assert set(card.files) == {WEIGHTS, "curve.png"}
    assert str(fitted.parent) not in (fitted / "bundle" / "bundle.json").read_text()


def test_fit_test_points_are_what_both_engines_do_to_the_files(fitted, pictures):
    bundle = read_bundle(fitted / "bundle")
    card = bundle.card
    files = [(f, label) for label, name in enumerate(card.labels)
             for f in sorted((pictures / "test" / name).iterdir())]  # fmt: skip
    images = np.stack([preprocess(f.read_bytes(), card.preprocessing, 10**6) for f, _ in files])
    labels = np.array([label for _, label in files])
    engines = [
        create_engine(bundle, kind, threads=1, cache_dir=fitted / "graphs")
        for kind in ("torch", "onnx")
    ]
    assert len(card.test) >= 3
    for point in card.test:
        penalty = np.full(len(images), card.penalty(point.budget), np.float32)
        torch, onnx = (
            engine.run(images, penalty, np.full(len(images), np.inf)) for engine in engines
        )
        assert (torch.logits.argmax(1) == labels).mean() == pytest.approx(point.accuracy)
        assert torch.macs.mean() / card.table().full == pytest.approx(point.fraction)
        assert torch.macs.std() / card.table().full == pytest.approx(point.spread, abs=1e-6)
        assert (torch.widths == onnx.widths).all(axis=1).mean() > 0.98
        same = (torch.logits.argmax(1) == onnx.logits.argmax(1)).mean()
        assert same > 0.98


def test_fit_measures_the_weights_as_they_are_stored(pictures, tmp_path):
    assert main(fit_flags(pictures, tmp_path, "export.weights=int8")) == 0
    stored = load_file(tmp_path / "bundle" / WEIGHTS)
    assert stored["conv.0.weight"].dtype == np.int8
    assert read_bundle(tmp_path / "bundle").card.training["export"] == {"weights": "int8"}
    assert_calibrated(tmp_path, pictures)


def test_fit_calibrates_on_held_out_training_images(fitted, pictures):
    assert_calibrated(fitted, pictures)


def assert_calibrated(folder, pictures):
    bundle = read_bundle(folder / "bundle")
    card = bundle.card
    _, held_out = load_train(
        str(pictures), card.preprocessing, held_out=0, seed=card.seed, cache=folder / "cache"
    )
    for point in card.calibration:
        outcome = by_policy(network_of(bundle), held_out, card.preprocessing, point.penalty)
        assert outcome.mean_fraction == pytest.approx(point.fraction)
        assert outcome.accuracy == pytest.approx(point.accuracy)
    policy = Policy(network_of(bundle), held_out, card.preprocessing)
    assert card.temperature == pytest.approx(fit_temperature(policy, card.calibration)) != 1


def test_fit_logs_every_stage_in_order(fitted):
    stages = list(dict.fromkeys(record["stage"] for record in _logged(fitted)))
    assert stages == ["supernet", "finetune", "agent"]


def test_fit_never_looks_at_test_images_before_the_end(fitted, pictures, tmp_path, capsys):
    """With unreadable test images all goes as ever until they are asked for, after calibration."""
    data = shutil.copytree(pictures, tmp_path / "pictures")
    for file in (data / "test").rglob("*.png"):
        file.write_bytes(b"poison")
    assert main(fit_flags(data, tmp_path)) == 1
    error = capsys.readouterr().err
    assert "test/cat/000.png cannot be read" in error
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "work" / "checkpoints" / "calibration.pt").exists()

    shutil.rmtree(data)
    shutil.copytree(pictures, data)
    assert main([*fit_flags(data, tmp_path), "--resume"]) == 0
    assert _weights(tmp_path) == _weights(fitted)
    assert _card(tmp_path) == _card(fitted)


KILLS = [
    "supernet:1",  # before the first checkpoint of all
    "supernet:2",  # in the first stage
    "paths:1",
    "finetune:2",
    "agent:1",
    "calibration:1",
    "bundle:1",
]


def test_fit_killed_in_every_stage_and_resumed_equals_an_uninterrupted_one(
    fitted, pictures, tmp_path
):
    flags = fit_flags(pictures, tmp_path)
    script = Path(__file__).with_name("killed.py")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run(
        [sys.executable, str(script), *KILLS, "--", *flags], cwd=tmp_path, env=environment,
        check=True,
    )  # fmt: skip
    assert not (tmp_path / "bundle").exists()
    assert main([*flags, "--resume"]) == 0
    assert _weights(tmp_path) == _weights(fitted)
    assert _card(tmp_path) == _card(fitted)
    assert _logged(tmp_path) == _logged(fitted)


def test_fit_stopped_while_decoding_can_be_resumed(tmp_path, capsys):
    data = save_pictures(tmp_path / "pictures", train=8, test=2)
    broken = data / "train" / "dog" / "003.png"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    flags = fit_flags(
        data, tmp_path, "supernet.epochs=1", "finetune.epochs=0",
        "agent.recordings=1", "agent.epochs=0",
    )  # fmt: skip
    assert main(flags) == 1
    broken.write_bytes(content)
    assert main([*flags, "--resume"]) == 0
    read_bundle(tmp_path / "bundle")


UNUSED = [
    ("paths", "agent.encoding=16"),
    ("paths", "agent.ways=2"),
    ("paths", "agent.epsilon=0.2"),
    ("paths", "agent.penalty=0.5"),
    ("priced", "agent.penalty=0.5"),
    ("priced", "agent.rule=loss"),
    ("paper", "agent.looks=1"),
    ("paper", "agent.sees=maps"),
    ("paper", "agent.views=image"),
    ("priced", "paths.count=2"),
    ("paper", "paths.count=2"),
]


@pytest.mark.parametrize(("form", "setting"), UNUSED)
def test_fit_setting_of_another_form_is_refused(form, setting, pictures, tmp_path, capsys):
    assert main(fit_flags(pictures, tmp_path, f"agent.form={form}", setting)) == 1
    name, _, _ = setting.partition("=")
    told = capsys.readouterr().err
    assert f"setting {name} is " in told
    assert f"but with agent.form={form} it is not used: leave it at " in told
    assert not (tmp_path / "work").exists()


def test_fit_agent_that_is_too_dear_is_refused_before_any_training(pictures, tmp_path, capsys):
    assert main(fit_flags(pictures, tmp_path, "agent.hidden=20000")) == 1
    assert "setting agent.hidden is 20000, make it less" in capsys.readouterr().err
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_fit_that_diverges_stops_and_says_so(pictures, tmp_path, capsys):
    assert main(fit_flags(pictures, tmp_path, "supernet.learning_rate=1e30")) == 1
    assert "stage supernet has diverged: its loss is nan after step" in capsys.readouterr().err
    assert not (tmp_path / "work" / "checkpoints" / "paths.pt").exists()


def test_fit_other_seed_gives_other_weights(fitted, pictures, tmp_path):
    assert main([*fit_flags(pictures, tmp_path), "--seed", "1"]) == 0
    assert _weights(tmp_path) != _weights(fitted)


def test_fit_paper_form_is_calibrated_and_evaluated(pictures, tmp_path, capsys):
    searched = ("paths.count=4", "paths.images=1000")  # the defaults: it searches for none
    flags = fit_flags(pictures, tmp_path, "agent.form=paper", "agent.penalty=0.05", *searched)
    assert main(flags) == 0
    card = read_bundle(tmp_path / "bundle").card
    assert (card.agent.form, card.agent.paths) == ("paper", ())
    assert card.calibration
    assert not (tmp_path / "work" / "checkpoints" / "paths.pt").exists()
    command = ["evaluate", str(tmp_path / "bundle"), "--data", str(pictures), "--budgets", "1"]
    places = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "report")]
    capsys.readouterr()
    assert main(command + places) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["points"][-1]["fraction"] == 1
