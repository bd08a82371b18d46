"""A trained bundle's penalties measured anew, on the held-out images that it was trained without.

For a bundle that was calibrated by other code, or with other points, than one would now.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file

from models.bundle import WEIGHTS, read_bundle, write_bundle
from training import settings
from training.calibration import calibrate
from training.config import Config
from training.errors import ConfigError
from training.evaluation import (
    held_out_images,
    measure_budgets,
    network_of,
    picture,
    table,
    test_images,
)
from training.measure import commit


def recalibrate(bundle_path: Path, source: str, points: int, cache: Path, out: Path) -> None:
    """Write a bundle with the same weights, new penalties and new test points; print the table.

    Args:
        points: penalties to measure; 0 for as many as it was trained to have.
        out: a new folder, whose name is that of the bundle.

    Raises:
        ConfigError: `out` exists, or the source is not what the bundle was trained on.
    """
    bundle = read_bundle(bundle_path)
    card = bundle.card
    if out.exists():
        raise ConfigError(f"--out {out} exists: name a new folder")
    if Path(source).name != card.data.get("source"):
        raise ConfigError(
            f"{card.name} was trained on {card.data.get('source')}, not {Path(source).name}: only "
            "there is it known which images it was trained without"
        )
    network, trained = network_of(bundle), settings.to_dict(Config()) | dict(card.training)
    points = points or trained["calibration"]["points"]
    calibration = calibrate(
        network,
        held_out_images(card, source, cache),
        card.preprocessing,
        highest_penalty=max(trained["agent"]["penalties"]),
        points=points,
    )
    told = {**card.training, "calibration": {"points": points, "git_commit": commit()}}
    card = replace(card, name=out.name, calibration=calibration, training=told)
    images = test_images(card, source, cache)
    budgets = [point.budget for point in card.test if card.min_fraction <= point.budget < 1]
    card = replace(card, test=measure_budgets(network, card, images, budgets))
    print(table(card, card.test, len(images)))
    packed = load_file(bundle_path / WEIGHTS)
    write_bundle(out, card, packed, picture(card, card.test))
    print(f"bundle written to {out}")
