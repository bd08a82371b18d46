"""Bundles with random weights, in memory, for timing: time does not depend on what was learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models import backbones
from models.bundle import Bundle, tensor_shapes
from models.card import CalibrationPoint, Card
from models.compute import mac_table, path_macs
from models.config import BLEND, AgentConfig, BackboneConfig
from models.preprocess import Preprocessing

# Places of the paths between the full network, at 0, and the narrowest, at 1, by the logarithm of
# their MACs; about those that the search found for the trained bundles.
PLACES = (0.8, 0.55, 0.3)
HIDDEN = 64
# Paths that are drawn for each that is kept.
DRAWN = 2000
SEED = 0


def random_bundle(
    name: str,
    classes: int,
    *,
    width: float = 1.0,
    image_size: int | None = None,
) -> Bundle:
    """A published backbone, and an agent that chooses among five paths.

    Args:
        width: multiplies the channels of every layer.
        image_size: side of the images in pixels, by default the published one.
    """
    backbone = backbones.build(name, classes, width=width, image_size=image_size)
    paths = spaced_paths(backbone)
    agent = AgentConfig(
        "paths", hidden=HIDDEN, paths=paths, sees="answer", views="both", blend=BLEND
    )
    rng = np.random.default_rng(SEED)
    tensors = {}
    for key, shape in tensor_shapes(backbone, agent).items():
        if key.endswith("scale"):
            values = np.ones(shape)
        elif key.endswith("weight"):
            # Signals keep their size from layer to layer: denormal numbers would be slow.
            values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            values = rng.normal(0, 0.1, shape)
        tensors[key] = values.astype(np.float32)
    side, table = backbone.image_size, mac_table(backbone, agent)
    card = Card(
        name=f"{name}-{side}",
        labels=tuple(str(label) for label in range(classes)),
        backbone=backbone,
        agent=agent,
        preprocessing=Preprocessing(side, side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        calibration=(CalibrationPoint(1.0, table.least / table.full, 0.5),),
    )
    return Bundle(card, tensors, Path(name), f"random {name} {side} {width} {classes} {SEED}")


def spaced_paths(backbone: BackboneConfig) -> tuple[tuple[int, ...], ...]:
    """The narrowest path, the full network, and between them random ones at `PLACES`."""
    k, layers, rng = backbone.groups, backbone.n_layers, np.random.default_rng(SEED)
    # About a common width, as paths that a search finds are, and not one narrow layer among wide.
    about = rng.uniform(1, k, (DRAWN, 1)) + rng.normal(0, 0.7, (DRAWN, layers))
    drawn = np.clip(np.rint(about), 1, k).astype(np.int64)
    for layer in filter(backbone.tied, range(layers)):
        drawn[:, layer] = drawn[:, layer - 2]
    table = mac_table(backbone, AgentConfig())
    narrowest, whole = [1] * layers, [k] * layers
    drawn = drawn[(drawn > 1).any(axis=1) & (drawn < k).any(axis=1)]
    logs = np.log(path_macs(np.array([narrowest, *drawn]), table, agent=False) / table.full)
    places = logs[1:] / logs[0]
    between = [drawn[np.abs(places - place).argmin()].tolist() for place in PLACES]
    return tuple(tuple(path) for path in (narrowest, *between, whole))
