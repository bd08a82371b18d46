"""A bundle so narrow that it takes no time, and images in class folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure.bundles import random_bundle
from models.bundle import write_bundle

LABELS = ("cat", "dog", "emu", "fox")


def write_narrow_bundle(path: Path) -> Path:
    """M-CifarNet with an eighth of its channels and random weights."""
    bundle = random_bundle("mcifarnet", len(LABELS), width=0.125)
    write_bundle(path, replace(bundle.card, name=path.name, labels=LABELS), bundle.tensors)
    return path


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
