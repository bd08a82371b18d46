from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu_training
from models.bundle import read_bundle
from tests.benchmarks.support import LABELS

SETTINGS = [
    "data.held_out=8", "data.cache={cache}", "backbone.width=0.125", "backbone.image_size=16",
    "supernet.batch_size=16", "paths.count=1", "paths.images=8", "agent.recordings=1",
    "agent.images=16", "agent.epochs=1", "calibration.points=3", "evaluation.budgets=[0.5]",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for label in LABELS:
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for index in range(15):
            pixels = noise.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


def _run(
    photos: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    *more: str,
) -> tuple[int, dict]:
    settings = [s.format(cache=out / "cache") for s in [*SETTINGS, *more]]
    flags = ["--data", str(photos), "--out", str(out), "--config", "tiny", "--at-once", "2"]
    flags += ["--seeds", "3", "--fractions", "0.5", "--methods", "l1", "searched", "narrow"]
    flags += [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["gpu_training", *flags])
    code = gpu_training.main()
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_trains_bundles_and_rivals_and_leaves_alone_what_is_finished(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    code, report = _run(photos, out, monkeypatch, capsys, "supernet.epochs=1", "finetune.epochs=1")
    assert (code, report["failed"]) == (0, []), (out / "seed-3.log").read_text()
    assert set(report["seconds"]) == {"plain", "seed-3", "l1-0.5", "searched-0.5", "narrow-0.5"}
    assert read_bundle(out / "seed-3" / "tiny").card.seed == 3
    static = [json.loads(path.read_text()) for path in sorted(out.glob("*/static.json"))]
    assert [(s["method"], s["fraction"] <= 0.5) for s in static] == [
        ("l1", True), ("narrow", True), ("plain", False), ("searched", True),
    ]  # fmt: skip
    code, report = _run(photos, out, monkeypatch, capsys, "supernet.epochs=1", "finetune.epochs=1")
    assert (code, report["seconds"]) == (0, {})


def test_names_what_failed_and_what_waits_for_it_is_not_begun(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    code, report = _run(photos, out, monkeypatch, capsys, "supernet.epoks=1")
    assert code == 1
    assert sorted(report["failed"]) == ["plain", "seed-3"]
    assert set(report["seconds"]) == {"plain", "seed-3"}
    assert "supernet.epoks is unknown" in (out / "plain.log").read_text()
