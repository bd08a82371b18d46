from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import agreement
from tests.benchmarks.support import write_images, write_narrow_bundle


def test_some_images_are_of_all_classes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = write_narrow_bundle(tmp_path / "narrow"), write_images(tmp_path / "data")
    compare, seen = agreement.compare, []

    def recorded(bundle, engines, images, *limits):
        seen.append(np.bincount(images.labels).tolist())
        return compare(bundle, engines, images, *limits)

    monkeypatch.setattr(agreement, "compare", recorded)
    flags = ["--data", data, "--bundle", bundle, "--cache", tmp_path / "cache", "--threads", 1]
    more = ["--images", 8, "--budgets", 0.5, "--caps", 0.9]
    monkeypatch.setattr("sys.argv", ["agreement", *map(str, flags + more)])
    assert agreement.main() == 0
    assert seen == [[2, 2, 2, 2]] * 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 8


@pytest.mark.parametrize(
    ("same_widths", "same_label", "cap", "good"),
    [
        (1, 1, None, True),
        (0.999, 0.9995, 0.5, True),
        (0.998, 1, None, False),
        (1, 0.999, None, False),
        (1, 1, 0.4, False),
    ],
)
def test_row_is_good_if_engines_agree_and_caps_are_kept(
    same_widths: float, same_label: float, cap: float | None, good: bool
) -> None:
    row = agreement.Row(0.8, cap, same_widths, same_label, 0.0, 0.3, largest_fraction=0.5)
    assert row.good == good
