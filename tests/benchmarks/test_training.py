from __future__ import annotations

import json

import pytest

from benchmarks import training


def test_main_times_both_kinds_of_steps_and_ends_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(training.MATRIX, "cpu", 64)
    command = "training --width 0.125 --image-size 16 --batch 4 --steps 2"
    monkeypatch.setattr("sys.argv", command.split())
    training.main()
    reports = json.loads(capsys.readouterr().out.splitlines()[-1])["reports"]
    assert [report["steps"] for report in reports] == ["supernet", "paths"]
    for report in reports:
        assert report["images_per_second"] > 0
        share = report["macs_per_second"] / report["peak_macs_per_second"]
        assert report["share"] == pytest.approx(share)
