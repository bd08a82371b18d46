"""Tests of training/runlog.py."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import runlog
from training.errors import CheckpointError, TrainingError
from training.runlog import LOG, SPEED, StageLog, read_log


def _run(work_dir, stage, start, stop, steps=6):
    with StageLog(work_dir, stage, steps=steps, done=start) as log:
        for step in range(start, stop):
            log.advance(images=10)
            log.write(loss=1 / (step + 1))


def _records(work_dir):
    return [{k: v for k, v in r.items() if k != SPEED} for r in read_log(work_dir / LOG)]


def test_write_gives_one_json_line_per_call(tmp_path):
    _run(tmp_path, "agent", 0, 2)
    assert _records(tmp_path) == [
        {"stage": "agent", "step": 1, "loss": 1.0},
        {"stage": "agent", "step": 2, "loss": 0.5},
    ]
    assert all(record[SPEED] > 0 for record in read_log(tmp_path / LOG))


def test_resumed_log_equals_an_uninterrupted_one(tmp_path):
    _run(tmp_path / "whole", "supernet", 0, 6)
    _run(tmp_path / "whole", "agent", 0, 6)

    _run(tmp_path / "killed", "supernet", 0, 6)
    _run(tmp_path / "killed", "agent", 0, 5)  # killed here, the last checkpoint at step 3
    with (tmp_path / "killed" / LOG).open("a") as file:
        file.write('{"stage": "agent", "st')  # in the middle of a line
    _run(tmp_path / "killed", "agent", 3, 6)
    assert _records(tmp_path / "killed") == _records(tmp_path / "whole")


def test_torn_last_line_of_a_killed_run_is_removed(tmp_path):
    _run(tmp_path, "agent", 0, 2)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"stage": "age')
    _run(tmp_path, "agent", 2, 3)
    assert [record["step"] for record in _records(tmp_path)] == [1, 2, 3]


def test_stage_without_checkpoint_starts_its_log_anew(tmp_path):
    _run(tmp_path, "supernet", 0, 2)
    _run(tmp_path, "agent", 0, 2)
    _run(tmp_path, "agent", 0, 1)
    assert [(r["stage"], r["step"]) for r in _records(tmp_path)] == [
        ("supernet", 1),
        ("supernet", 2),
        ("agent", 1),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_write_not_finite_is_null_and_stops_the_run(tmp_path, value):
    told = rf"stage agent has diverged: its loss is {value} after step 1 of 4: start anew with"
    with StageLog(tmp_path, "agent", steps=4) as log:
        log.advance(1)
        with pytest.raises(TrainingError, match=told):
            log.write(accuracy=0.5, loss=value)
    assert json.loads((tmp_path / LOG).read_text())["loss"] is None


def test_write_scalars_reach_tensorboard_once_after_a_resume(tmp_path):
    _run(tmp_path, "agent", 0, 5)
    _run(tmp_path, "agent", 3, 6)
    board = EventAccumulator(str(tmp_path / "tensorboard" / "agent")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_advance_without_terminal_prints_a_line_with_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runlog, "_LINE_SECONDS", -1.0)
    with StageLog(tmp_path, "agent", steps=4, done=2) as log:
        log.advance(10)
        log.write(loss=0.25)
        log.advance(10)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("agent 3/4, 00:00 left, ")
    assert second.startswith("agent 4/4, 00:00 left, ")
    assert second.endswith(" img/s, loss 0.25")


def test_stage_log_unwritable_is_named(tmp_path):
    (tmp_path / LOG).mkdir()
    with pytest.raises(CheckpointError, match=r"log .*log\.jsonl cannot be read"):
        StageLog(tmp_path, "agent", steps=1)
