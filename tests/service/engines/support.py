"""Backbones, random bundles with agents of each form, images and rows to run them on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.bundle import Bundle, tensor_shapes
from models.card import CalibrationPoint, Card
from models.compute import mac_table, path_macs
from models.config import AgentConfig, BackboneConfig, ConvConfig, Sees, Views
from models.preprocess import Preprocessing
from service.engines.base import Result
from tests.service.engines.masked import MaskedNetwork

STEM = ConvConfig("0", "n0", 3, 8)


def conv(in_channels: int, out_channels: int, **rest: object) -> ConvConfig:
    return dataclasses.replace(STEM, in_channels=in_channels, out_channels=out_channels, **rest)


def block(in_channels: int, out_channels: int, stride: int, shortcut: str) -> list[ConvConfig]:
    first = conv(in_channels, out_channels, stride=stride)
    return [first, conv(out_channels, out_channels, shortcut=shortcut)]


CHAIN = BackboneConfig(
    "chain",
    image_size=18,
    layers=(
        conv(3, 8, padding=0),
        conv(8, 16, stride=2, kernel=5, padding=2),
        conv(16, 12, pool=(2, 2, 0)),
        conv(12, 16, kernel=1, padding=0),
        conv(16, 20),
    ),
    linears=(6,),
    linear_names=("head",),
)
RESIDUAL = BackboneConfig(
    "residual",
    image_size=15,
    layers=(
        conv(3, 8, pool=(3, 2, 1)),
        *block(8, 8, 1, "identity"),
        *block(8, 16, 2, "pad"),
        *block(16, 24, 2, "project"),
        *block(24, 24, 1, "identity"),
    ),
    linears=(5,),
    linear_names=("head",),
)
# The last maps, of side 5, do not divide into 2 × 2.
LINEARS = BackboneConfig(
    "linears",
    image_size=10,
    layers=(STEM, conv(8, 12), conv(12, 12, pool=(2, 2, 0))),
    linears=(14, 9, 4),
    linear_names=("a", "b", "c"),
    groups=2,
    pool_to=2,
)
EXACT = dataclasses.replace(LINEARS, name="exact", pool_to=5, groups=4)
HALVED = dataclasses.replace(LINEARS, name="halved", image_size=8)
THREE_GROUPS = dataclasses.replace(
    CHAIN, name="three groups", groups=3, layers=(conv(3, 6), conv(6, 9), conv(9, 12))
)
# What a block reads is padded, or cut where the block's end is narrower.
PADDED = BackboneConfig(
    "padded",
    image_size=8,
    layers=(conv(3, 8), *block(8, 16, 2, "project"), *block(16, 20, 1, "pad")),
    linears=(4,),
    linear_names=("head",),
)
BACKBONES = [CHAIN, RESIDUAL, LINEARS, EXACT, HALVED, THREE_GROUPS, PADDED]
FORMS = ["paths", "priced", "paper"]


def agent_of(
    form: str,
    backbone: BackboneConfig,
    looks: int = 0,
    sees: Sees = "maps",
    views: Views = "both",
) -> AgentConfig:
    if form == "paths":
        paths, blend = some_paths(backbone), 0.25 if views == "both" else 0.0
        return AgentConfig(form, 32, 12, paths, looks, sees, views, blend)
    return AgentConfig(form, encoding=24, hidden=24)


def some_paths(backbone: BackboneConfig) -> tuple[tuple[int, ...], ...]:
    """The narrowest, alternating and random ones, and the whole, by rising MACs."""
    k, n_layers = backbone.groups, backbone.n_layers
    rng = np.random.default_rng(0)
    free = [[odd, even] * n_layers for odd, even in itertools.product((1, k), repeat=2)]
    free += rng.integers(1, k + 1, (4, 2 * n_layers)).tolist()
    paths = [path_of(backbone, widths) for widths in free]
    macs = path_macs(np.array(paths), mac_table(backbone, AgentConfig()), agent=False)
    # Of two that cost the same, one is enough.
    by_macs = dict(zip(macs.tolist(), paths, strict=True))
    return tuple(by_macs[spent] for spent in sorted(by_macs))


def path_of(backbone: BackboneConfig, widths: Iterable[int]) -> tuple[int, ...]:
    """The path whose layers take widths in turn, the tied ones those that they must have."""
    path: list[int] = []
    for layer, width in zip(range(backbone.n_layers), widths, strict=False):
        path.append(path[-2] if backbone.tied(layer) else width)
    return tuple(path)


def random_bundle(
    backbone: BackboneConfig,
    form: str,
    seed: int = 0,
    looks: int = 0,
    sees: Sees = "maps",
    views: Views = "both",
) -> Bundle:
    """A bundle whose agent takes different paths for different images."""
    rng, agent = np.random.default_rng(seed), agent_of(form, backbone, looks, sees, views)
    tensors = {}
    for name, shape in tensor_shapes(backbone, agent).items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        values = rng.normal(size=shape) * np.sqrt(2 / fan_in)
        if name.startswith("agent.encoder") and name.endswith("weight"):
            values *= 4
        if name == "agent.decoder.bias":
            values *= 0
        if name.endswith("scale"):
            values = rng.uniform(0.7, 1.7, shape)
            # The fewer inputs, the less they vary; so no width's signal dies away.
            values *= np.sqrt(shape[0] / np.arange(1, shape[0] + 1))[:, None]
        half = name.startswith("conv") and name.endswith("weight")
        tensors[name] = values.astype(np.float16 if half else np.float32)
    size = backbone.image_size
    card = Card(
        name=backbone.name,
        labels=tuple(str(index) for index in range(backbone.classes)),
        backbone=backbone,
        agent=agent,
        preprocessing=Preprocessing(size, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        calibration=(CalibrationPoint(1.0, 0.2, 0.5),),
    )
    bundle = Bundle(card, tensors, Path(backbone.name), f"{backbone.name} {agent} {seed}")
    if form == "paths":
        spread_gains(bundle)
    return bundle


def spread_gains(bundle: Bundle) -> None:
    """Let what the agent expects differ among images, by about as much as paths do in price."""
    network, images = MaskedNetwork(bundle), random_images(bundle.card.backbone, 8, seed=2)
    for look in range(bundle.card.agent.deciding):
        found = [network.along(x, list(bundle.card.agent.paths[look])) for x in images]
        gains = np.array([network.gains(look, logits, end, 0.3)[0] for logits, end, _ in found])
        weight, bias = (
            bundle.tensors[f"agent.looks.{look}.2.{part}"] for part in ("weight", "bias")
        )
        bias -= gains.mean(axis=0)
        deviation = gains.std(axis=0)
        # A narrow agent's hidden features may all be off.
        scale = 0.5 / np.where(deviation > 1e-6, deviation, 0.5)
        weight *= scale[:, None].astype(np.float32)
        bias *= scale


def random_images(backbone: BackboneConfig, n: int, seed: int = 1) -> np.ndarray:
    """Noise in front of a colour, as the agent sees the means of maps."""
    rng, size = np.random.default_rng(seed), backbone.image_size
    images = rng.normal(size=(n, 3, 1, 1)) * 2 + rng.normal(size=(n, 3, size, size))
    return images.astype(np.float32)


def most(bundle: Bundle) -> float:
    """The cap that allows any path, and all of them one after another."""
    table, n_layers = bundle.card.table(), bundle.card.backbone.n_layers
    if table.looks:
        return sum(table.looks) / table.full
    return float(path_macs(np.full((1, n_layers), table.groups), table, agent=True)[0] / table.full)


def mixed_rows(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, penalties and caps of all kinds, plain rows among the others."""
    penalty = np.tile(np.float32([0.3, 0, 1, 0.02, -0.5, 4]), 7)
    cap = np.repeat([1, 0.8, most(bundle), 0.6, 1.3, math.inf], 7)
    cap = np.maximum(cap, bundle.card.min_cap)
    return random_images(bundle.card.backbone, len(cap)), penalty, cap


def check_same(result: Result, wanted: Result) -> None:
    np.testing.assert_array_equal(result.widths, wanted.widths)
    np.testing.assert_array_equal(result.macs, wanted.macs)
    np.testing.assert_allclose(result.logits, wanted.logits, rtol=1e-4, atol=1e-4)
