"""Small images, as files."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from models.preprocess import Preprocessing

LIMIT = 1_000_000
SMALL = Preprocessing(size=8, resize=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 8, height: int = 8) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
