"""Checkpoints of the stages of a run, and random states, so that a killed run can go on.

<work>/checkpoints/<stage>.pt   step, the stage's state, random states
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError
from training.files import write_atomic


@dataclass(frozen=True)
class Checkpoint:
    """A stage as it was saved.

    Attributes:
        step: steps completed.
        state: what the stage saved: state dicts, tensors, numbers, text, lists and dicts of them.
    """

    step: int
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run, the latest of each stage."""

    def __init__(self, work_dir: Path) -> None:
        self._folder = work_dir / "checkpoints"

    def save(self, stage: str, state: Mapping[str, Any], *, step: int = 0) -> None:
        """Replace a stage's checkpoint, whole or not at all, with the random states of now.

        Raises:
            CheckpointError: it cannot be written.
        """
        content = {"step": step, "state": dict(state), "random": _random_states()}
        # In memory first: torch reports a full disk as an internal error.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(self._path(stage), buffer.getvalue())

    def load(self, stage: str) -> Checkpoint | None:
        """A stage's checkpoint, or None; the random states become those at its saving.

        All tensors are on the CPU; `load_state_dict` moves them to where a module is.

        Raises:
            CheckpointError: the file is broken.
        """
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint = Checkpoint(content["step"], content["state"])
            _set_random_states(content["random"])
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.PickleError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
        return checkpoint

    def remove(self, stage: str) -> None:
        """Forget a stage, whether it has a checkpoint or not."""
        self._path(stage).unlink(missing_ok=True)

    def any(self) -> bool:
        """Whether any stage has a checkpoint."""
        return any(self._folder.glob("*.pt"))

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage}.pt"


def _random_states() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    # A run may go on with another number of devices; then they keep their own states.
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
