from __future__ import annotations

import json
import sys

import pytest

from benchmarks import decoding


def test_main_times_every_format_and_ends_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "decoding --sizes 40x32 600x400 --size 32 --resize 32 --rounds 1 --seconds 0.01"
    monkeypatch.setattr(sys, "argv", command.split())
    assert decoding.main() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["rows"]
    assert [row["kind"] for row in rows] == list(decoding.FORMATS) * 2
    assert [row["width"] for row in rows] == [40] * 6 + [600] * 6
    for row in rows:
        assert min(row["ms"], row["images_per_s"], row["size_bytes"]) > 0
        assert (row["whole_ms"] is not None) == row["kind"].startswith("JPEG")
    # Read at an eighth of its size.
    assert rows[6]["ms"] < rows[6]["whole_ms"]
