"""A bundle: a directory with everything needed to serve, verified before use. No torch, no pickle.

<name>/bundle.json         the card: what it is, how it was made, what every budget costs
<name>/model.safetensors   folded weights (`weight`, `scale` and `shift` per input width), head and
                           agent, in as few bits as `models.storage` says
<name>/curve.png           accuracy against compute
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.compute import MacTable, mac_table
from models.config import (
    AgentConfig,
    BackboneConfig,
    decisions,
    look_sizes,
    to_dict,
)
from models.preprocess import Preprocessing
from models.storage import Tensors, unpack

FORMAT = 3
CARD, WEIGHTS, CURVE = "bundle.json", "model.safetensors", "curve.png"

# Accuracies on held-out images that differ by less are alike: about the standard error of such a
# difference on some thousand images, of which few are right along one way and wrong along another.
NOISE = 0.001
# Penalties below it, on either side of zero, count as small.
_LINEAR_PENALTY = 0.003


class BundleError(ValueError):
    """A bundle that cannot be read, is not whole, or was changed after it was written."""


def penalty_scale(penalty: float) -> float:
    """A penalty on a scale that is logarithmic, but for a linear part about zero."""
    return math.asinh(penalty / _LINEAR_PENALTY)


def penalty_at(scale: float) -> float:
    """The penalty at a place of `penalty_scale`; never exactly 0, which asks for no agent."""
    return _LINEAR_PENALTY * math.sinh(scale) or _LINEAR_PENALTY * 1e-6


@dataclass(frozen=True)
class CalibrationPoint:
    """What a penalty spends and keeps, measured on held-out training images."""

    penalty: float
    fraction: float
    accuracy: float


@dataclass(frozen=True)
class TestPoint:
    """What a budget spent and kept on test images; `spread` is the deviation among images."""

    budget: float
    fraction: float
    spread: float
    accuracy: float


@dataclass(frozen=True)
class Card:
    """What `bundle.json` says.

    Attributes:
        calibration: by falling penalty, so by rising fraction.
        test: by rising budget; empty until the bundle was evaluated.
        files: SHA-256 of each other file of the bundle.
    """

    name: str
    labels: tuple[str, ...]
    backbone: BackboneConfig
    agent: AgentConfig
    preprocessing: Preprocessing
    calibration: tuple[CalibrationPoint, ...]
    test: tuple[TestPoint, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    git_commit: str = "unknown"
    files: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> MacTable:
        """The network's MACs."""
        return mac_table(self.backbone, self.agent)

    @cached_property
    def min_fraction(self) -> float:
        """The lowest budget that the agent can reach on average, rounded up to 4 digits."""
        return math.ceil(self.calibration[0].fraction * 1e4) / 1e4

    @property
    def min_cap(self) -> float:
        """The lowest cap that can be kept, rounded up to 4 digits."""
        table = self.table()
        return math.ceil(table.least / table.full * 1e4) / 1e4

    @cached_property
    def best_budget(self) -> float:
        """The least budget at which held-out images are as often right as at any, within `NOISE`.

        More is not always better: an agent that looks at two views of an image may be right more
        often than the full network, which sees one. Where the dearest point is best, nothing says
        that less than the full network would do.
        """
        *cheaper, _ = self.calibration
        least = max(point.accuracy for point in self.calibration) - NOISE
        enough = (point.fraction for point in cheaper if point.accuracy >= least)
        return max(round(min(next(enough, 1.0), 1.0), 4), self.min_fraction)

    def penalty(self, budget: float) -> float:
        """The penalty that spends `budget` of the full MACs on average; 0 at budget 1.

        Raises:
            ValueError: the budget is outside [min_fraction, 1].
        """
        if not self.min_fraction <= budget <= 1:
            raise ValueError(f"budget {budget} is outside [{self.min_fraction}, 1]")
        if budget == 1:
            return 0.0
        return penalty_at(float(np.interp(budget, *self._calibrated)))

    @cached_property
    def _calibrated(self) -> npt.NDArray[np.float64]:
        """(2, P): fractions, and the scale's place of the penalty that spends each."""
        points = ((point.fraction, penalty_scale(point.penalty)) for point in self.calibration)
        return np.array(list(points)).T

    def to_json(self) -> dict[str, Any]:
        """The card as JSON-ready values, with the MACs per layer for readers."""
        table = self.table()
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values.update(
            format=FORMAT,
            backbone=to_dict(self.backbone),
            agent=to_dict(self.agent),
            preprocessing=dataclasses.asdict(self.preprocessing),
            calibration=[dataclasses.asdict(point) for point in self.calibration],
            test=[dataclasses.asdict(point) for point in self.test],
            macs={
                "full": table.full,
                "least": table.least,
                "layers": table.layers[:, -1, -1, -1].tolist(),
                "head": int(table.head[-1]),
            },
        )
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Card:
        """Read a card.

        Raises:
            BundleError: another version, a missing or an unknown field, or dimensions that do
                not give the MACs that the card states.
        """
        if values.get("format") != FORMAT:
            raise BundleError(
                f"bundle format {values.get('format')!r} is unknown: this version reads {FORMAT}"
            )
        try:
            rest = {k: v for k, v in values.items() if k not in ("format", "macs")}
            rest["labels"] = tuple(rest["labels"])
            rest["backbone"] = BackboneConfig.from_dict(rest["backbone"])
            rest["agent"] = AgentConfig.from_dict(rest["agent"])
            rest["preprocessing"] = Preprocessing.from_dict(rest["preprocessing"])
            rest["calibration"] = tuple(CalibrationPoint(**p) for p in rest["calibration"])
            rest["test"] = tuple(TestPoint(**p) for p in rest["test"])
            rest["files"] = dict(rest["files"])
            card = cls(**rest)
            stated = values["macs"]["full"]
            card._check(stated)
        except BundleError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BundleError(f"bundle card cannot be read: {error!r}") from error
        return card

    def _check(self, stated_macs: int) -> None:
        if self.table().full != stated_macs:
            raise BundleError(
                f"bundle card states {stated_macs} MACs, its dimensions give {self.table().full}"
            )
        if len(self.labels) != self.backbone.classes:
            raise BundleError(
                f"bundle card has {len(self.labels)} labels for {self.backbone.classes} classes"
            )
        points = self.calibration
        if not points:
            raise BundleError("bundle card has no calibration")
        if any(point.penalty == 0 for point in points):
            raise BundleError("bundle card's calibration has the penalty 0, which asks no agent")
        for low, high in itertools.pairwise(points):
            if not (low.penalty > high.penalty and low.fraction < high.fraction):
                raise BundleError("bundle card's calibration is not sorted by rising fraction")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory, unpacked. `digest` is the SHA-256 of card and files together."""

    card: Card
    tensors: Tensors
    path: Path
    digest: str


def write_bundle(path: Path, card: Card, packed: Tensors, curve_png: bytes | None = None) -> Card:
    """Write a bundle whole or not at all, and return its card with the files' hashes.

    Args:
        packed: as the file is to hold them, see `models.storage`.

    Raises:
        FileExistsError: `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"bundle directory {path} exists: choose another, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        files = {WEIGHTS: save_tensors(packed)}
        if curve_png is not None:
            files[CURVE] = curve_png
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        card = dataclasses.replace(card, files={n: _sha256(c) for n, c in files.items()})
        (scratch / CARD).write_text(json.dumps(card.to_json(), indent=1) + "\n")
        scratch.chmod(0o755)
        os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return card


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: a file is missing, changed, of another version, or its tensors do not fit the
            dimensions on its card; the message names it.
    """
    try:
        card_text = (path / CARD).read_bytes()
        values = json.loads(card_text)
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read: {error}") from error
    except ValueError as error:
        raise BundleError(f"bundle {path}: {CARD} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"bundle {path}: {CARD} is not a JSON object")
    card = Card.from_json(values)
    if WEIGHTS not in card.files:
        raise BundleError(f"bundle {path}: {CARD} lists no {WEIGHTS}")
    contents = {name: _verified(path, name, digest) for name, digest in card.files.items()}
    try:
        tensors = unpack(load_tensors(contents[WEIGHTS]))
    except ValueError as error:
        raise BundleError(f"bundle {path}: {error}") from error
    _check_shapes(path, card, tensors)
    return Bundle(card, tensors, path, _sha256(card_text))


def tensor_shapes(backbone: BackboneConfig, agent: AgentConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a bundle."""
    k = backbone.groups
    shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(backbone.layers):
        convs = {f"conv.{index}": layer, f"projection.{index}": backbone.projection(index)}
        for name, conv in convs.items():
            if conv is not None:
                fan_in, fan_out = conv.in_channels, conv.out_channels
                shapes[f"{name}.weight"] = (fan_out, fan_in, conv.kernel, conv.kernel)
                shapes[f"{name}.scale"] = shapes[f"{name}.shift"] = (k, fan_out)
    features = backbone.in_channels(backbone.n_layers, k) * backbone.pool_to**2
    for index, (a, b) in enumerate(
        zip((features, *backbone.linears), backbone.linears, strict=False)
    ):
        shapes[f"head.{index}.weight"], shapes[f"head.{index}.bias"] = (b, a), (b,)
    return {**shapes, **_agent_shapes(backbone, agent)}


def _agent_shapes(backbone: BackboneConfig, agent: AgentConfig) -> dict[str, tuple[int, ...]]:
    k, hidden = backbone.groups, agent.hidden
    if agent.form == "paths":
        linears = {
            f"looks.{look}.{layer}": (b, a)
            for look in range(agent.deciding)
            for layer, (a, b) in enumerate(itertools.pairwise(look_sizes(backbone, agent, look)))
        }
    else:
        linears = {
            f"encoder.{index}": (agent.encoding, backbone.in_channels(index, k))
            for index in decisions(backbone, agent)
        }
        linears["decoder"] = (k, hidden)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        shapes[f"agent.{name}.weight"], shapes[f"agent.{name}.bias"] = shape, shape[:1]
    if agent.form != "paths":
        gates = 3 * hidden
        shapes["agent.cell.weight_ih"] = (gates, agent.cell_inputs)
        shapes["agent.cell.weight_hh"] = (gates, hidden)
        shapes["agent.cell.bias_ih"] = shapes["agent.cell.bias_hh"] = (gates,)
    return shapes


def _check_shapes(path: Path, card: Card, tensors: Tensors) -> None:
    wanted = tensor_shapes(card.backbone, card.agent)
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tensors[name].shape if name in tensors else None
        if found != wanted.get(name):
            raise BundleError(
                f"bundle {path}: tensor {name} is {found or 'missing'}, "
                f"the card's dimensions want {wanted.get(name) or 'none'}"
            )


def _verified(path: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name:
        raise BundleError(f"bundle {path}: file name {name!r} is not plain")
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise BundleError(f"bundle {path}: {name} cannot be read: {error}") from error
    if _sha256(content) != digest:
        raise BundleError(f"bundle {path}: {name} does not match its SHA-256: it was changed")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
