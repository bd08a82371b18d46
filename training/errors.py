"""What can go wrong in training, each told in one sentence that names the file or the setting.

TrainingError
├── ConfigError      a setting is unknown, of the wrong type, or changed between runs
├── DataError        images or labels cannot be used
└── CheckpointError  a checkpoint or a log cannot be read or written
"""

from __future__ import annotations


class TrainingError(Exception):
    """The user can mend it: the command line prints the sentence and exits with 1."""


class ConfigError(TrainingError):
    """A setting is unknown, of the wrong type, or differs from the run that is resumed."""


class DataError(TrainingError):
    """A data source, an image or a class cannot be used."""


class CheckpointError(TrainingError):
    """A checkpoint or a log cannot be read or written."""
