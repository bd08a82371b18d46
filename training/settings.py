"""Settings from a YAML file and the command line, and what a resumed run must share.

    python -m training fit --config tiny --data photos --set supernet.epochs=3

Unknown settings are errors. The resolved settings are saved beside the checkpoints, and a run is
resumed only with the same ones, on the same images and from the same bundle.

<work>/config.yaml   the resolved settings
<work>/inputs.yaml   digests of what they name
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from training.config import Config
from training.errors import CheckpointError, ConfigError
from training.files import write_atomic

PRESETS = Path(__file__).parent / "configs"
SAVED, INPUTS = "config.yaml", "inputs.yaml"

# These change where and how fast a run computes, not what; of precision, the last digits.
_MAY_DIFFER = ("out", "work", "threads", "device", "data.cache", "supernet.precision")
_CONFIG = TypeAdapter(Config)


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
    try:
        return _CONFIG.validate_python(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from error


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested YAML- and JSON-ready values."""
    values: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return values


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

    Of what was not recorded when the run began, or as nothing, the digest of now is taken.

    Args:
        inputs: by setting, the digest of what it names; None for nothing.

    Raises:
        ConfigError: something has changed; the message names the setting and its value.
        CheckpointError: the directory cannot be written.
    """
    path, now = config.work_dir / INPUTS, flatten(to_dict(config))
    saved = read_yaml(str(path)) if resume and path.exists() else {}
    for name, digest in inputs.items():
        if (saved.get(name) or digest) != digest:
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


def _sentence(error: ValidationError) -> str:
    """The first error, with the setting's name."""
    first = error.errors()[0]
    # What follows a setting's name is the place in a list.
    names = [part for part in first["loc"] if isinstance(part, str)]
    name = ".".join(names)
    if first["type"] == "unexpected_keyword_argument":
        return _unknown(name, names[:-1])
    return f"setting {name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _unknown(name: str, sections: list[str]) -> str:
    defaults = to_dict(Config())
    beside = reduce(getitem, sections, defaults)
    known = [".".join([*sections, setting]) for setting in beside]
    close = difflib.get_close_matches(name, [*known, *flatten(defaults)], n=1)
    guess = f"did you mean {close[0]}? Known are" if close else "known are"
    return f"setting {name} is unknown: {guess} {', '.join(known)}"
