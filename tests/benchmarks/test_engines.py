from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.measure import processes
from benchmarks.measure.bundles import PLACES, random_bundle
from benchmarks.measure.rivals import full_networks
from benchmarks.measure.timing import LEAST_ROUNDS, LEAST_S, in_turn
from benchmarks.measure.work import engine_of
from models.compute import path_macs

PROCESSOR = ["--threads", "1", "--clock", "processor"]


def test_quick_run_prints_a_table_and_a_json_line_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "engines.png"
    command = ["engines", "--quick", "--check-costs", "--threads", "1", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--picture", str(picture)])
    engines.main()
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = report["rows"]
    assert len(rows) == 4 * len(engines.BUDGETS)
    for threads in (1, 2):
        # A row of what was measured, and one of what was foretold.
        assert sum(line.startswith(f"| onnx | {threads} |") for line in table) == len(rows)
    assert len({line.count("|") for line in table if line.startswith("| onnx")}) == 2
    assert len(report["forecasts"]) == len(rows)
    for row in rows:
        assert row["fraction"] == pytest.approx(row["budget"], abs=0.02)
        assert row["mac_saving"] == pytest.approx(1 / row["fraction"])
        for part in ("ms", "time_saving", "ratio"):
            spread = row[part]
            assert all(math.isfinite(value) for value in spread.values())
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    full = {(full["rival"], full["threads"]) for full in report["full"]}
    assert full >= {("ONNX Runtime", 1), ("ONNX Runtime", 2), ("ONNX Runtime, batch cut", 2)}
    assert all(threads == 2 for rival, threads in full if rival.endswith("batch cut"))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_quick_run_of_processes_compares_them_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["engines", "--quick", "--processes", "2", "--budgets", "0.25"]
    monkeypatch.setattr("sys.argv", command)
    engines.main()
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [(row["batch"], row["budget"]) for row in report["processes"]] == [(1, 0.25), (8, 0.25)]
    assert sum(line.startswith("| onnx |") for line in table) == 2
    assert not report["rows"]
    for row in report["processes"]:
        # Where other programs want the cores too, several answer no more than one.
        assert 0.5 < row["gain"]["median"] < 2.5
        assert row["together"]["median"] > row["alone"]["median"] * 0.5 > 0


@pytest.mark.parametrize("options", [["--processes", "1"], ["--processes", "2", *PROCESSOR]])
def test_processes_that_compare_nothing_are_refused(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["engines", *options])
    with pytest.raises(SystemExit):
        engines.main()
    assert "--processes compares 2 or more with one" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--processes", "2", "--budgets", "0.25"]])
def test_rows_name_the_engine_that_ran(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["engines", "--quick", "--engines", "auto", "--threads", "1", *options]
    monkeypatch.setattr("sys.argv", command)
    engines.main()
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = report["processes"] or report["rows"] + report["forecasts"]
    assert {row["engine"] for row in rows} == {"onnx"}
    assert not [line for line in table if line.startswith("| auto")]


def test_engine_of_an_unknown_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = random_bundle("mcifarnet", 10, width=0.125)
    with pytest.raises(ValueError, match="engine 'onyx' is unknown: choose one of auto, onnx"):
        engine_of(bundle, "onyx", 1, tmp_path)
    monkeypatch.setattr("sys.argv", ["engines", "--engines", "onyx"])
    with pytest.raises(SystemExit):
        engines.main()
    assert "invalid choice: 'onyx'" in capsys.readouterr().err


def test_process_that_cannot_build_its_network_ends_the_measurement() -> None:
    build = partial(random_bundle, "no-such-network", 10)
    with pytest.raises(EOFError):
        next(processes.measure("none", build, "onnx", 2, [1.0], [1], 1, 1))


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


class Work:
    """Rivals that take so many seconds each, by their own clock."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.calls = 0.0, ""
        self.rivals = {name: partial(self._run, name, took) for name, took in seconds.items()}

    def _run(self, name: str, took: float) -> None:
        self.now += took
        self.calls += name

    def clock(self) -> float:
        return self.now


def test_in_turn_times_rivals_alternately_and_each_once_before() -> None:
    work = Work(a=1, b=2)
    seconds = in_turn(work.rivals, rounds=3, clock=work.clock)
    assert work.calls == "ab" + "ababab"
    assert {name: values.tolist() for name, values in seconds.items()} == {
        "a": [1] * 3,
        "b": [2] * 3,
    }


def test_in_turn_repeats_what_is_short() -> None:
    work = Work(a=LEAST_S / 4)
    seconds = in_turn(work.rivals, rounds=2, clock=work.clock)
    assert work.calls == "aa" + "aaaa" * 2
    assert seconds["a"] == pytest.approx([LEAST_S / 4] * 2)


def test_in_turn_begins_no_round_after_the_time_beyond_the_least() -> None:
    for limit_s, rounds in ((1, LEAST_ROUNDS), (4.5, 4), (100, 9)):
        work = Work(a=1)
        assert len(in_turn(work.rivals, 9, work.clock, limit_s)["a"]) == rounds
