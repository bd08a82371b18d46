"""Images made harder: noise, blur and JPEG at five strengths, as in CIFAR-10-C.

The settings are those that Hendrycks and Dietterich (2019) chose for CIFAR-10, the made images are
not theirs:
- noise: Gaussian, of the given deviation where values lie in [0, 1], by a seeded generator;
- blur: Gaussian, of the given deviation in pixels of an image of 32², more in a larger one, by
  Pillow (a few box filters in its place);
- jpeg: saved at the given quality by Pillow, and read again.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from training.data import Pixels

SETTINGS = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "jpeg": (80, 65, 58, 50, 40),
}
STRENGTHS = range(1, 6)


def corrupt(pixels: Pixels, kind: str, strength: int, seed: int) -> Pixels:
    """Corrupted copies of images.

    Args:
        pixels: (N, S, S, 3) uint8, RGB.
        kind: a key of SETTINGS. strength: 1..5.
        seed: of the noise.
    """
    setting = SETTINGS[kind][strength - 1]
    rng = np.random.default_rng((seed, strength))
    return np.stack([_CHANGES[kind](image, setting, rng) for image in pixels])


def _noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    noisy = image + 255 * deviation * rng.standard_normal(image.shape, np.float32)
    return noisy.round().clip(0, 255).astype(np.uint8)


def _blur(image: Pixels, deviation: float, _rng: np.random.Generator) -> Pixels:
    blur = ImageFilter.GaussianBlur(deviation * len(image) / 32)
    return np.asarray(Image.fromarray(image).filter(blur))


def _jpeg(image: Pixels, quality: float, _rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


_CHANGES: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
}
