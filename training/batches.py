"""Batches for training: seeded, resumable at any step, augmented as whole tensors of bytes.

The order of an epoch is a function of (seed, epoch) and the augmentation of a batch one of
(seed, epoch, step), so that a run resumed at a step sees what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.preprocess import Preprocessing
from training.data import Images


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: largest shift as a share of the image's side; what enters is mirrored.
        flip: whether half of the images are mirrored left to right.
        cutout: side of a square that is blanked, as a share of the image's side; 0 for none.
    """

    shift: float = 0.125
    flip: bool = True
    cutout: float = 0.0


class Batch(NamedTuple):
    """Images and labels.

    Attributes:
        images: (n, 3, S, S) float32, normalised, channels-last in memory.
        labels: (n,) int64.
        indices: (n,) int64, the images' places in their set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class Batches:
    """Shuffled batches of equal size; the images left over take part in another epoch."""

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        *,
        size: int,
        seed: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._images, self._preprocessing, self._seed = images, preprocessing, seed
        self._size, self._augmentation = min(size, len(images)), augmentation
        self._labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self._images) // self._size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        order = torch.randperm(len(self._images), generator=generator(self._seed, epoch))
        for step in range(start, len(self)):
            indices = order[step * self._size : (step + 1) * self._size]
            pixels = torch.from_numpy(self._images.take(indices.numpy()))
            rng = generator(self._seed, epoch, step)
            yield self._batch(pixels, indices, rng)

    def _batch(self, pixels: Tensor, indices: Tensor, rng: torch.Generator) -> Batch:
        labels = self._labels[indices]
        if self._augmentation is None:
            return Batch(normalise(pixels, self._preprocessing), labels, indices)
        images = normalise(shift_and_flip(pixels, self._augmentation, rng), self._preprocessing)
        return Batch(cut_out(images, self._augmentation.cutout, rng), labels, indices)


def in_order(images: Images, preprocessing: Preprocessing, size: int) -> Iterator[Batch]:
    """Every image once, in order, as it is; the last batch may be smaller."""
    labels = torch.from_numpy(images.labels)
    for start in range(0, len(images), size):
        pixels = torch.from_numpy(images.take(slice(start, start + size)))
        indices = torch.arange(start, start + len(pixels))
        yield Batch(normalise(pixels, preprocessing), labels[indices], indices)


def generator(*seeds: int) -> torch.Generator:
    """A random generator of its own for each tuple of seeds, each ≥ 0."""
    # Their number leads, because numpy takes (1, 0) for (1,).
    (state,) = np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What `Preprocessing.normalise` computes: (n, S, S, 3) uint8 to (n, 3, S, S) float32."""
    std = torch.tensor(preprocessing.std)
    mean = torch.tensor(preprocessing.mean)
    values = pixels.float().mul_(1 / (255 * std)).sub_(mean / std)
    return values.permute(0, 3, 1, 2)


def shift_and_flip(pixels: Tensor, augmentation: Augmentation, rng: torch.Generator) -> Tensor:
    """Shift each image by its own offset and mirror half of them: (n, S, S, 3) uint8 both ways."""
    n, size = pixels.shape[:2]
    most = round(augmentation.shift * size)
    offsets = torch.randint(-most, most + 1, (2, n, 1), generator=rng)
    flips = torch.rand((n, 1), generator=rng) < 0.5
    line = torch.arange(size)
    rows = _mirrored(line + offsets[0], size)
    columns = _mirrored(line + offsets[1], size)
    if augmentation.flip:
        columns = torch.where(flips, columns.flip(1), columns)
    flat = (torch.arange(n)[:, None, None] * size + rows[:, :, None]) * size + columns[:, None, :]
    return pixels.reshape(-1, 3)[flat]


def cut_out(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Blank a square of each (n, 3, S, S) normalised image, in place; at the rim it is cut off."""
    side = round(share * images.shape[-1])
    if side == 0:
        return images
    n, size = len(images), images.shape[-1]
    starts = torch.randint(0, size, (2, n, 1), generator=rng) - side // 2
    inside = (torch.arange(size) >= starts) & (torch.arange(size) < starts + side)
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill_(square, 0.0)


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0..size-1 mirrored at the rim, which is not repeated."""
    return (size - 1) - ((size - 1) - index.abs()).abs()
