from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from service.engines.triton_tuning import CANDIDATES, Tile, Tuner


class Times:
    """A timer for which the tile that a trial is given takes a known time."""

    def __init__(self, best: Tile) -> None:
        self.best, self.tried = best, list[Tile]()

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        return 1.0 if self.tried[-1] == self.best else math.inf

    def trial(self, tile: Tile) -> None:
        self.tried.append(tile)


def test_tuner_takes_the_fastest_and_tries_it_once(tmp_path: Path) -> None:
    times, file = Times(CANDIDATES[3]), tmp_path / "deep" / "tiles.json"
    tuner = Tuner(file, times)
    for _ in range(2):
        assert tuner.tile("shape", 512, 512, times.trial) == CANDIDATES[3]
    assert times.tried == list(CANDIDATES)
    tuner.save()
    again = Tuner(file, times)
    assert again.tile("shape", 512, 512, times.trial) == CANDIDATES[3]
    assert len(times.tried) == len(CANDIDATES)


def test_tuner_tries_no_tile_larger_than_the_layer() -> None:
    times = Times(Tile(64, 16, 32, 4, 3))
    Tuner(timer=times).tile("shape", 27, 10, times.trial)
    assert len(set(times.tried)) == len(times.tried)
    assert {(tile.n, tile.k) for tile in times.tried} == {(16, 32)}


def test_tuner_keeps_what_others_found_meanwhile(tmp_path: Path) -> None:
    times, file = Times(CANDIDATES[0]), tmp_path / "tiles.json"
    first, second = Tuner(file, times), Tuner(file, times)
    first.tile("one", 512, 512, times.trial)
    second.tile("two", 512, 512, times.trial)
    first.save()
    second.save()
    both = Tuner(file)
    assert both.tile("one", 512, 512, times.trial) == CANDIDATES[0]
    assert both.tile("two", 512, 512, times.trial) == CANDIDATES[0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["{", '{"shape": {"m": 1, "q": 2}}', "[]"])
def test_tuner_unreadable_file_is_logged_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    times, file = Times(CANDIDATES[1]), tmp_path / "tiles.json"
    file.write_text(content)
    tuner = Tuner(file, times)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    tuner.tile("shape", 512, 512, times.trial)
    tuner.save()
    assert Tuner(file).tile("shape", 512, 512, times.trial) == CANDIDATES[1]


def test_tuner_on_a_full_disk_leaves_nothing_behind_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, small_files: Callable
) -> None:
    times = Times(CANDIDATES[1])
    tuner = Tuner(tmp_path / "tiles.json", times)
    tuner.tile("shape", 512, 512, times.trial)
    with small_files(10):
        tuner.save()
    assert list(tmp_path.iterdir()) == []
    assert "tiles are not kept" in caplog.text


def test_tuner_without_timer_gives_the_default() -> None:
    assert Tuner().tile("shape", 512, 512, lambda tile: None) == Tile()
    found = Tuner(default=CANDIDATES[2]).tile("shape", 9, 9, lambda tile: None)
    assert found == CANDIDATES[2].clipped(9, 9)
