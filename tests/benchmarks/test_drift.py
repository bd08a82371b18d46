from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import drift
from tests.benchmarks.support import write_images, write_narrow_bundle


def test_main_compares_budgets_with_and_without_the_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = write_narrow_bundle(tmp_path / "narrow"), write_images(tmp_path / "data")
    flags = ["--data", data, "--bundle", bundle, "--cache", tmp_path / "cache", "--threads", 1]
    more = ["--images", 4000, "--budgets", 0.5]
    monkeypatch.setattr("sys.argv", ["drift", *map(str, flags + more)])
    code = drift.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "narrow: 4000 requests, drawn from the hardest 8 of 40 test images"
    report = json.loads(printed[-1])
    assert code == (0 if report["good"] else 1)
    plain, corrected = report["runs"]
    assert (plain["corrected"], corrected["corrected"]) == (False, True)
    assert len(plain["windows"]) == 4
    # Nothing is learnt from what it spends.
    assert max(plain["windows"]) - min(plain["windows"]) < 0.1
    assert abs(corrected["settled"] - 0.5) <= abs(plain["settled"] - 0.5)
