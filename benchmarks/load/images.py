"""Real images as bodies of requests, with their classes."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.bundle import read_bundle
from models.card import Card

FORMATS = ("PNG", "JPEG")


@dataclass(frozen=True)
class Files:
    """Image files and the index of each one's class."""

    contents: list[bytes]
    labels: npt.NDArray[np.int64]


def test_images(source: str, card: Card, count: int, form: str, cache: Path) -> Files:
    """Some test images of a source, as files of a format.

    They are as large as the network's input before the centre is cropped. In PNG, which loses
    nothing, the service sees the pixels that `training evaluate` sees.

    Args:
        form: one of `FORMATS`.
        cache: folder for decoded images.

    Raises:
        DataError: the source cannot be used.
    """
    # Here, as the generator's process imports what its parent did, and this takes seconds.
    from training.data import load_test

    squares = replace(card.preprocessing, size=card.preprocessing.resize)
    images = load_test(source, squares, names=card.labels, cache=cache)
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    pixels = images.take(chosen)
    return Files([_encode(image, form) for image in pixels], images.labels[chosen])


def read_card(bundle: Path) -> Card:
    """What a bundle says of itself."""
    return read_bundle(bundle).card


def _encode(pixels: npt.NDArray[np.uint8], form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()
