"""What a stage tells while it runs: a JSON-lines log, TensorBoard scalars and a progress bar.

<work>/log.jsonl              {"stage": "supernet", "step": 200, "loss": 1.9, …}
<work>/tensorboard/<stage>/   the same numbers
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.errors import CheckpointError, TrainingError
from training.files import write_atomic

LOG = "log.jsonl"
# The only logged value that differs between an uninterrupted run and a resumed one.
SPEED = "images_per_second"

_LINE_SECONDS = 30.0


class StageLog:
    """Log of one stage; use it as a context manager.

    With a terminal the bar shows time left and the latest numbers; without one, a line is printed
    every half minute.
    """

    def __init__(self, work_dir: Path, stage: str, *, steps: int, done: int = 0) -> None:
        """Open the log where a run left it.

        Args:
            stage: name of the stage.
            steps: of the whole stage.
            done: steps completed at the checkpoint that is resumed; what was logged after it is
                removed, so that the log equals that of an uninterrupted run.

        Raises:
            CheckpointError: the log cannot be written.
        """
        self._path, self._stage = work_dir / LOG, stage
        self._steps, self._done, self._step = steps, done, done
        self._images, self._began = 0, time.monotonic()
        self._printed, self._shown = self._began, ""
        rewind(self._path, stage, done)
        self._board = SummaryWriter(str(work_dir / "tensorboard" / stage), purge_step=done + 1)
        self._bar = tqdm(
            desc=stage, total=steps, initial=done, unit="step", disable=None, smoothing=0.05
        )

    @property
    def step(self) -> int:
        """Steps completed."""
        return self._step

    def advance(self, images: int) -> None:
        """Count one more step, which used so many images."""
        self._step += 1
        self._images += images
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._printed > _LINE_SECONDS:
            self._print()

    def write(self, **values: float) -> None:
        """Log numbers of the step that was completed last; what is not finite is logged as null.

        Raises:
            CheckpointError: the log cannot be written.
            TrainingError: a number is not finite: what is trained has diverged.
        """
        speed = self._images / max(time.monotonic() - self._began, 1e-9)
        numbers = {name: _number(value) for name, value in {**values, SPEED: speed}.items()}
        _append(self._path, {"stage": self._stage, "step": self._step, **numbers})
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"stage {self._stage} has diverged: its {name} is {value} after step "
                    f"{self._step} of {self._steps}: start anew with a lower learning_rate"
                )
        for name, value in values.items():
            self._board.add_scalar(name, value, self._step)
        self._shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.set_postfix_str(f"{speed:.0f} img/s, {self._shown}")

    def __enter__(self) -> StageLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._board.close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        left = (self._steps - self._step) * seconds / (self._step - self._done)
        told = [
            f"{self._stage} {self._step}/{self._steps}",
            f"{tqdm.format_interval(left)} left",
            f"{self._images / seconds:.0f} img/s",
            *([self._shown] if self._shown else []),
        ]
        print(", ".join(told), file=sys.stderr, flush=True)


def rewind(path: Path, stage: str, step: int) -> None:
    """Cut a log before the first line of `stage` beyond `step`, and a torn last line.

    Raises:
        CheckpointError: the log cannot be written.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"log {path} cannot be read: {error.strerror}") from error
    kept = 0
    while kept < len(lines) and _before(lines[kept], stage, step):
        kept += 1
    if kept < len(lines):
        write_atomic(path, b"".join(lines[:kept]))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _before(line: bytes, stage: str, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    record = json.loads(line)
    return bool(record["stage"] != stage or record["step"] <= step)


def _append(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise CheckpointError(f"log {path} cannot be written: {error.strerror}") from error


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
