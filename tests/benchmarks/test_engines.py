from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.measure.bundles import PLACES, random_bundle
from benchmarks.measure.rivals import full_networks
from benchmarks.measure.timing import in_turn
from models.compute import path_macs


def test_quick_run_prints_a_table_and_a_json_line_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "engines.png"
    command = ["engines", "--quick", "--check-costs", "--threads", "1", "--picture", str(picture)]
    monkeypatch.setattr("sys.argv", command)
    engines.main()
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = report["rows"]
    assert len(rows) == 2 * len(engines.BUDGETS)
    assert sum(line.startswith("| onnx | 1 |") for line in table) == 2 * len(rows)
    assert len({line.count("|") for line in table if line.startswith("| onnx")}) == 2
    assert len(report["forecasts"]) == len(rows)
    for row in rows:
        assert row["fraction"] == pytest.approx(row["budget"], abs=0.02)
        assert row["mac_saving"] == pytest.approx(1 / row["fraction"])
        for part in ("ms", "time_saving", "ratio"):
            spread = row[part]
            assert all(math.isfinite(value) for value in spread.values())
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert {full["rival"] for full in report["full"]} >= {"ONNX Runtime"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", sorted(engines.NETWORKS))
def test_random_bundle_has_paths_at_the_wanted_places(name: str) -> None:
    backbone, classes, size = engines.NETWORKS[name]
    card = random_bundle(backbone, classes, width=0.125, image_size=size).card
    macs = path_macs(np.array(card.agent.paths), card.table(), agent=False)
    logs = np.log(macs / macs[-1])
    np.testing.assert_allclose(logs / logs[0], [1, *PLACES, 0], atol=0.05)


def test_rivals_agree_on_the_full_network(tmp_path: Path) -> None:
    bundle = random_bundle("mcifarnet", 10, width=0.125)
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    answers = [run(images) for run in full_networks(bundle, 2, tmp_path).values()]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-3, atol=1e-4)


def test_in_turn_times_rivals_alternately_and_each_once_before() -> None:
    calls: list[str] = []
    now = iter(range(1000))
    work = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = in_turn(work, rounds=3, clock=lambda: float(next(now)))
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
