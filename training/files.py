"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from training.errors import CheckpointError, ConfigError


def check_out(out: Path) -> None:
    """See that what `--out` names can be written, before any time is spent; nothing is left there.

    Raises:
        ConfigError: nothing can be written there, or where its folder would be created.
    """
    there = next(place for place in (out, *out.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out is {out}, but nothing can be written there ({error.strerror}): choose another"
        ) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file; after a crash or on a full disk the old one is still there.

    Raises:
        CheckpointError: it cannot be written.
    """
    # One name, so that what a killed run left is overwritten by the next.
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """Make a rename last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
