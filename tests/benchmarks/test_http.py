from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import http
from tests.benchmarks.support import write_images, write_narrow_bundle


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: object
) -> tuple[int, list[str], dict[str, Any]]:
    """Exit code, the lines of the tables, and the report."""
    monkeypatch.setattr("sys.argv", ["http", *map(str, flags)])
    code = http.main()
    *lines, last = capsys.readouterr().out.splitlines()
    return code, lines, json.loads(last)


def test_quick_run_of_all_scenarios_against_a_real_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_narrow_bundle(tmp_path / "bundles" / "narrow")
    data, pictures = write_images(tmp_path / "data"), tmp_path / "pictures"
    flags = ["--data", data, "--bundle", bundle, "--quick", "--pictures", pictures]
    flags += ["--shapes", "bursts", "--budgets", 1, 0.5, "--cache", tmp_path / "cache"]
    code, lines, report = run(monkeypatch, capsys, *flags)

    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        rows.setdefault(row["scenario"], []).append(row)
    assert [row["budget"] for row in rows["capacity"]] == [1, 0.5]
    assert rows["capacity"][0]["fraction"] == 1
    assert report["capacity"] == rows["capacity"][0]["answered"] > 0
    for row in rows["overhead"]:
        assert 0 < row["overhead_ms"] < row["total_p50_ms"] < row["p50_ms"]
    fixed = {row["part"]: row for row in rows["fixed-vs-auto"] if row["mode"] == "fixed"}
    assert set(fixed) == {"all", "calm", "burst"}
    assert fixed["burst"]["offered"] > 2 * fixed["calm"]["offered"]
    assert fixed["all"]["requests"] == fixed["calm"]["requests"] + fixed["burst"]["requests"]
    assert (pictures / "load-bursts.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < report["generator"]["us_per_request"] < 5000
    for row in (*rows["capacity"], *fixed.values()):
        assert row["errors"] == 0

    assert (code, report["missing"]) == (0, [])
    assert {"ratio", "deadline"} <= rows.keys()
    assert not [line for line in lines if line.startswith("NOT RUN")]


def test_each_mode_goes_first_as_often_as_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, object]] = []
    bench = SimpleNamespace(
        flags=SimpleNamespace(
            shapes=["steps"], seconds=1, target_ms=50, floor=0.1, rounds=4, pictures=None
        ),
        full=10.0,
        rows=[],
        cost=SimpleNamespace(add=lambda outcome: None),
        plan=lambda times: None,
        put_budget=lambda scenario, budget: True,
    )
    monkeypatch.setattr(http, "SETTLE_S", 0)
    monkeypatch.setattr(http, "drive", lambda plan: None)
    monkeypatch.setattr(http, "over_time", lambda *rest: None)
    monkeypatch.setattr(
        http, "_note_parts", lambda bench, shape, mode, round_, *rest: asked.append((round_, mode))
    )
    http.fixed_vs_auto(bench)
    first = ["fixed", "auto", "fixed", "auto"]
    assert [mode for _, mode in asked[::2]] == first
    assert {*asked} == {(round_, mode) for round_ in range(4) for mode in ("fixed", "auto")}


def test_rates_need_the_full_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--data", "x", "--budgets", 0.5)
    assert "--budgets needs 1" in capsys.readouterr().err
