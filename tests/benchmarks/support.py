"""A bundle so narrow that it takes no time, images in class folders, and runs made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load.outcome import COLUMNS, Outcome
from benchmarks.measure.bundles import random_bundle
from models.bundle import write_bundle

LABELS = ("cat", "dog", "emu", "fox")


def write_narrow_bundle(path: Path) -> Path:
    """M-CifarNet with an eighth of its channels and random weights."""
    bundle = random_bundle("mcifarnet", len(LABELS), width=0.125)
    write_bundle(path, replace(bundle.card, name=path.name, labels=LABELS), bundle.tensors)
    return path


def outcome(**columns: list[float]) -> Outcome:
    """Requests whose other columns say nothing."""
    length = len(next(iter(columns.values())))
    whole = {name: np.full(length, np.nan) for name in COLUMNS}
    return Outcome(whole | {name: np.array(v, float) for name, v in columns.items()}, 0.0, 0.0)


# One request was answered, and one given up after a minute.
GIVEN_UP = outcome(
    due=[0.0, 0.0], done=[1.0, 60.0], status=[200, -1], image=[0, 1], answer=[0, np.nan]
)


def write_images(path: Path) -> Path:
    """A folder of class folders, with noise as images."""
    noise = np.random.default_rng(0)
    for label in LABELS:
        for split, count in (("train", 1), ("test", 10)):
            folder = path / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return path
