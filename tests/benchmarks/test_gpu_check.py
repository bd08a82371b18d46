from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_check

pytest.importorskip("triton")


@pytest.mark.skipif(os.environ["TRITON_INTERPRET"] == "0", reason="Triton is compiled here")
def test_rehearsal_runs_all_but_what_others_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # set by what follows, and put back here
    monkeypatch.setattr("sys.argv", ["gpu_check", "--rehearse", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(gpu_check, "run_tests", lambda: {"passed": 1, "failed": 0, "skipped": 0})
    commands: list[list[str]] = []
    run = SimpleNamespace(run=lambda command, **_: commands.append(command))
    monkeypatch.setattr(gpu_check, "subprocess", run)
    assert gpu_check.main() == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {"benchmark": "gpu_check", "rehearsal": True, "good": True}
    # In either precision, and timed.
    assert sum(line.startswith("| toy |") for line in table) == 3
    assert [command[-1] for command in commands] == ["benchmarks.measure.compiled"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("calls", "waits", "good"),
    [(["cudaGraphLaunch"], 0, True), (["cudaStreamSynchronize"], 1, False), ([], 0, False)],
)
def test_profile_is_good_if_it_has_calls_and_none_waits(
    calls: list[str], waits: int, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"calls": calls, "waits": waits}
    monkeypatch.setattr(gpu_check, "profile", lambda flags, name: row)
    assert gpu_check.profiles(Namespace(networks=["a"]))["good"] is good
