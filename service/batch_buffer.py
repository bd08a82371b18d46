"""Images become the rows of a batch, as late as can be: what waits is a quarter as large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from models.preprocess import Floats, Pixels, Preprocessing


class BatchBuffer:
    """Makes one array of what waits, in memory that the next batch takes again."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._values = self._room(1)

    def __call__(self, images: Sequence[Pixels | Floats]) -> Floats:
        """Stack images, (H, W, 3) uint8 pixels or (3, H, W) preprocessed: (N, 3, H, W) float32."""
        if len(self._values) < len(images):
            self._values = self._room(len(images))
        for row, image in zip(self._values, images, strict=False):
            if image.dtype == np.uint8:
                self._preprocessing.normalise(cast(Pixels, image), row)
            else:
                row[...] = image
        return self._values[: len(images)]

    def _room(self, rows: int) -> Floats:
        size = self._preprocessing.size
        return np.empty((rows, 3, size, size), np.float32)
