"""A bundle's card: what a network is, how it was made, and what every budget costs. No torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.compute import MacTable, mac_table
from models.config import AgentConfig, BackboneConfig, check_fields, to_dict
from models.preprocess import Preprocessing

FORMAT = 3

# Accuracies on held-out images that differ by less are alike: about the standard error of such a
# difference on some thousand images, of which few are right along one way and wrong along another.
_ALIKE = 0.001
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
        temperature: what logits are divided by before they become probabilities, so that held-out
            images were right as often as their answers claimed (Guo et al., ICML 2017).
        test: by rising budget; empty until the bundle was evaluated.
        files: SHA-256 of each other file of the bundle.
    """

    name: str
    labels: tuple[str, ...]
    backbone: BackboneConfig
    agent: AgentConfig
    preprocessing: Preprocessing
    calibration: tuple[CalibrationPoint, ...]
    temperature: float = 1.0
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

    @cached_property
    def min_cap(self) -> float:
        """The lowest cap that can be kept, rounded up to 4 digits."""
        table = self.table()
        return math.ceil(table.least / table.full * 1e4) / 1e4

    @cached_property
    def best_budget(self) -> float:
        """The least budget at which held-out images are as often right as at any, to 0.1 points.

        More is not always better: an agent that looks at two views of an image may be right more
        often than the full network, which sees one. Where the dearest point is best, nothing says
        that less than the full network would do.
        """
        *cheaper, _ = self.calibration
        reached = [point for point in cheaper if point.fraction < 1]
        # No budget reaches what lies beyond 1; those below it are interpolated towards that.
        points = [(point.fraction, point.accuracy) for point in self.calibration]
        dearest = float(np.interp(1, *np.array(points).T))
        least = max([dearest, *(point.accuracy for point in reached)]) - _ALIKE
        enough = (point.fraction for point in reached if point.accuracy >= least)
        return max(round(next(enough, 1.0), 4), self.min_fraction)

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
                not give the MACs that the card states. Of the agent `sees`, `views` and `blend`
                may be missing.
        """
        if values.get("format") != FORMAT:
            raise BundleError(
                f"format {values.get('format')!r} is unknown: this version reads {FORMAT}"
            )
        try:
            rest = {k: v for k, v in values.items() if k not in ("format", "macs")}
            check_fields(cls, rest)
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
            raise BundleError(f"card cannot be read: {error!r}") from error
        return card

    def _check(self, stated_macs: int) -> None:
        if self.table().full != stated_macs:
            raise BundleError(
                f"card states {stated_macs} MACs, its dimensions give {self.table().full}"
            )
        if not self.name or not all(isinstance(text, str) for text in (self.name, *self.labels)):
            raise BundleError("card's name and labels must be text")
        if self.preprocessing.size != self.backbone.image_size:
            raise BundleError(
                f"card's images are prepared at {self.preprocessing.size} pixels, its "
                f"network takes {self.backbone.image_size}"
            )
        if len(self.labels) != self.backbone.classes:
            raise BundleError(
                f"card has {len(self.labels)} labels for {self.backbone.classes} classes"
            )
        self._check_calibration()

    def _check_calibration(self) -> None:
        points = self.calibration
        if not points:
            raise BundleError("card has no calibration")
        measured: list[CalibrationPoint | TestPoint] = [*points, *self.test]
        numbers = [value for point in measured for value in dataclasses.astuple(point)]
        if not np.isfinite(numbers).all() or not 0 < points[0].fraction <= 1:
            raise BundleError("card's calibration or test points are not what can be measured")
        if not 0 < self.temperature < math.inf:
            raise BundleError("card's temperature is not a positive number")
        if any(point.penalty == 0 for point in points):
            raise BundleError("card's calibration has the penalty 0, which asks no agent")
        for low, high in itertools.pairwise(points):
            if not (low.penalty > high.penalty and low.fraction < high.fraction):
                raise BundleError("card's calibration is not sorted by rising fraction")
