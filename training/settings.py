"""Settings from a YAML file and the command line, and what a resumed run must share.

    python -m training fit --config tiny --data photos --set supernet.epochs=3

Unknown settings are errors. The resolved settings are saved beside the checkpoints, and a run is
resumed only with the same ones, on the same images and from the same bundle.

<work>/config.yaml   the resolved settings
<work>/inputs.yaml   digests of what they name
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from training.config import Config
from training.errors import CheckpointError, ConfigError
from training.files import write_atomic

PRESETS = Path(__file__).parent / "configs"
SAVED, INPUTS = "config.yaml", "inputs.yaml"

# These change where and how fast a run computes, not what; of precision, the last digits.
_MAY_DIFFER = ("out", "work", "threads", "device", "data.cache", "supernet.precision")
# No number may be negative; of these none may be 0, and of the shares none may exceed 1.
_POSITIVE = (
    "batch_size", "groups", "points", "width", "encoding", "hidden", "budgets", "penalties",
    "images", "recordings", "ways", "count", "crop",
)  # fmt: skip
_SHARES = ("budgets", "epsilon", "label_smoothing", "shift", "crop", "cutout", "cutmix")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `from_flags` reads."""
    parser.add_argument("--config", help=f"YAML file, or one of: {', '.join(presets())}")
    parser.add_argument("--data", help="folder of class folders, parquet folder, or hub id")
    parser.add_argument("--backbone", help="name of the network to train")
    parser.add_argument("--out", help="directory of the bundle to write")
    parser.add_argument("--seed", help="of everything random")
    parser.add_argument("--threads", help="CPU threads")
    parser.add_argument("--device", help="auto (a CUDA GPU if there is one), cpu or cuda")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", dest="settings",
        help="any other setting, such as supernet.epochs=3; may be repeated",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue after the last checkpoint")


def from_flags(flags: argparse.Namespace) -> Config:
    """Resolve the settings: defaults, then the file, then the command line.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type; the message names it.
    """
    values = read_yaml(flags.config) if flags.config else {}
    named = {
        "data.source": flags.data, "backbone.name": flags.backbone,
        "out": flags.out, "seed": flags.seed, "threads": flags.threads, "device": flags.device,
    }  # fmt: skip
    for name, value in named.items():
        if value is not None:
            _set(values, name, value)
    for setting in flags.settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting} has no value: write --set setting=value")
        _set(values, name, _parse(name, text))
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Settings from nested values as a YAML file holds them; what is absent has its default.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type; the message names it.
    """
    return typing.cast(Config, _build(Config, values, ""))


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested YAML- and JSON-ready values."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def read_yaml(name: str) -> dict[str, Any]:
    """A settings file as nested values.

    Args:
        name: a file, or the name of one of `presets()`.

    Raises:
        ConfigError: it cannot be read.
    """
    path = PRESETS / f"{name}.yaml" if name in presets() else Path(name)
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"settings file {name} cannot be read ({error.strerror}): "
            f"name a file or one of {', '.join(presets())}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"settings file {path} is not YAML: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"settings file {path} holds no settings but {values!r}")
    return values


def presets() -> list[str]:
    """Names of the settings files that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def save(config: Config, work_dir: Path) -> None:
    """Write the resolved settings beside the checkpoints.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomic(work_dir / SAVED, text.encode())


def check_resumable(config: Config, work_dir: Path) -> None:
    """Check that a run may go on with these settings.

    Raises:
        ConfigError: a setting differs from the saved ones, or only one of the two has it; the
            message names it and both values.
        CheckpointError: there is no run to resume.
    """
    path = work_dir / SAVED
    if not path.exists():
        raise CheckpointError(f"nothing to resume: {path} does not exist")
    # As they were written: what a missing setting was then, today's default does not say.
    saved, now = flatten(read_yaml(str(path))), flatten(to_dict(config))
    for name in saved | now:
        if now.get(name, ...) != saved.get(name, ...) and name not in _MAY_DIFFER:
            here = repr(now[name]) if name in now else "unknown"
            there = repr(saved[name]) if name in saved else "none"
            raise ConfigError(
                f"setting {name} is {here}, but the run in {work_dir} has {there}: "
                "resume with the same settings and version, or start anew elsewhere"
            )


def pin(config: Config, inputs: Mapping[str, str | None], *, resume: bool) -> None:
    """Record what a run reads, or check that a resumed one reads the same.

    Of what was not recorded when the run began, the digest of now is taken.

    Args:
        inputs: by setting, the digest of what it names; None for nothing.

    Raises:
        ConfigError: something has changed; the message names the setting and its value.
        CheckpointError: the directory cannot be written.
    """
    path, now = config.work_dir / INPUTS, flatten(to_dict(config))
    saved = read_yaml(str(path)) if resume and path.exists() else {}
    for name, digest in inputs.items():
        if saved.get(name, digest) != digest:
            raise ConfigError(
                f"setting {name} is {now[name]!r} as before, but what it names has changed since "
                f"the run in {config.work_dir} began: bring that back, or start anew elsewhere"
            )
    write_atomic(path, yaml.safe_dump(dict(inputs)).encode())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else None
        flat.update({prefix + name: value} if nested is None else nested)
    return flat


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"setting {name}: {section} is not a section")
    values[last] = value


def _parse(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"setting {name}: {text!r} is not a value") from error


def _build(kind: type, values: Any, section: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"setting {section} is a section of settings, not {values!r}")
    hints, prefix = typing.get_type_hints(kind), f"{section}." if section else ""
    built = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(_unknown(f"{prefix}{name}", [prefix + hint for hint in hints]))
        hint = hints[name]
        read = _build if dataclasses.is_dataclass(hint) else _typed
        built[name] = read(hint, value, f"{prefix}{name}")
    return kind(**built)


def _unknown(name: str, known: list[str]) -> str:
    everything = list(flatten(to_dict(Config())))
    close = difflib.get_close_matches(name, [*known, *everything], n=1)
    guess = f"did you mean {close[0]}? Known are" if close else "known are"
    return f"setting {name} is unknown: {guess} {', '.join(known)}"


def _typed(hint: Any, value: Any, name: str) -> Any:
    """The value as its type, or an error that says what it should be."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(f"setting {name} is {value!r}: choose {' or '.join(map(repr, options))}")
    if origin is types.UnionType:
        return None if value is None else _typed(options[0], value, name)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(options[0], item, name) for item in value)
        raise ConfigError(f"setting {name} is {value!r}: it must be a list")
    return _scalar(hint, value, name)


def _scalar(kind: type, value: Any, name: str) -> Any:
    if kind in (int, float):
        return _number(kind, value, name)
    if type(value) is not kind:
        word = "true or false" if kind is bool else "text"
        raise ConfigError(f"setting {name} is {value!r}: it must be {word}")
    return value


def _number(kind: type, value: Any, name: str) -> int | float:
    word = "a whole number" if kind is int else "a number"
    try:
        # Text too: YAML 1.1 reads 1e-3 as text, and flags are text anyway.
        inexact = isinstance(value, bool) or (kind is int and isinstance(value, float))
        number: int | float = math.nan if inexact else kind(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"setting {name} is {value!r}: it must be {word}")
    last = name.rpartition(".")[2]
    if number < 0 or (number == 0 and last in _POSITIVE):
        raise ConfigError(f"setting {name} is {value!r}: it is too small")
    if number > 1 and last in _SHARES:
        raise ConfigError(f"setting {name} is {value!r}: it is a share, at most 1")
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
