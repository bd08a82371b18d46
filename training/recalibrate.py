"""A trained bundle's penalties measured anew, on the held-out images that it was trained without.

For a bundle that was calibrated by other code, or with other points, than one would now.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file

from models.bundle import WEIGHTS, Bundle, read_bundle
from models.card import Card
from training import settings
from training.calibration import calibrate, fit_temperature
from training.config import Config
from training.errors import ConfigError
from training.evaluation import (
    held_out_images,
    measure_budgets,
    network_of,
    table,
    test_images,
)
from training.files import check_out
from training.fit import write
from training.measure import Policy, commit


def recalibrate(bundle_path: Path, source: str, points: int, cache: Path, out: Path) -> None:
    """Write a bundle with the same weights, new penalties and new test points; print the table.

    Args:
        points: penalties to measure, at least 2; 0 for as many as it was trained to have.
        out: a new folder, whose name is that of the bundle.

    Raises:
        ConfigError: `out` exists or cannot be written, the points are too few, or the source is not
            what the bundle was trained on.
    """
    bundle = read_bundle(bundle_path)
    card = bundle.card
    _check(card, source, points, out)
    held_out, images = held_out_images(card, source, cache), test_images(card, source, cache)
    network, trained = network_of(bundle), settings.to_dict(Config()) | dict(card.training)
    points = points or trained["calibration"]["points"]
    policy = Policy(network, held_out, card.preprocessing)
    highest = max(trained["agent"]["penalties"])
    calibration = calibrate(policy, highest_penalty=highest, points=points)
    card = replace(
        card,
        name=out.name,
        calibration=calibration,
        temperature=fit_temperature(policy, calibration),
        # Older cards have no digest, and are checked by less.
        data={**card.data, "digest": held_out.digest},
        training={**card.training, "recalibration": {"points": points, "git_commit": commit()}},
    )
    budgets = [point.budget for point in card.test if card.min_fraction <= point.budget < 1]
    card = replace(card, test=measure_budgets(network, card, images, budgets))
    print(table(card, card.test, len(images)))
    write(Bundle(card, bundle.tensors, out, ""), load_file(bundle_path / WEIGHTS))
    print(f"bundle written to {out}")


def _check(card: Card, source: str, points: int, out: Path) -> None:
    if points < 0 or points == 1:
        raise ConfigError(
            f"--points is {points}: it must be at least 2, or 0 for as many as {card.name} was "
            "trained to have"
        )
    if out.exists():
        raise ConfigError(f"--out {out} exists: name a new folder")
    check_out(out)
    if Path(source).name != card.data.get("source"):
        raise ConfigError(
            f"{card.name} was trained on {card.data.get('source')}, not {Path(source).name}: only "
            "there is it known which images it was trained without"
        )
