"""Batches for training: seeded, resumable at any step, augmented as whole tensors.

The order of an epoch is a function of (seed, epoch) and the augmentation of a batch one of
(seed, epoch, step), so that a run resumed at a step sees what an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.preprocess import Preprocessing
from training.data import Images, Pixels

# Of a random crop, the logarithm of the longer side over the shorter one.
_LOG_ASPECT = math.log(4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: largest shift as a share of the image's side; what enters is mirrored.
        crop: smallest share of the image's area that a random rectangle of it has, which is then
            shown instead of a shifted image; 1 for none. What serving crops away takes part.
        flip: whether half of the images are mirrored left to right.
        cutout: side of a square that is blanked, as a share of the image's side; 0 for none.
        size: side, in pixels, of what a random crop is resized to; 0 for the input's.
    """

    shift: float
    crop: float
    flip: bool
    cutout: float
    size: int


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
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        """Prepare; nothing is decoded or copied yet.

        Args:
            size: images of a batch.
            device: where batches are made.
        """
        self._images, self._preprocessing, self._seed = images, preprocessing, seed
        self._size, self._augmentation = min(size, len(images)), augmentation
        self._device, self._labels = device, torch.from_numpy(images.labels).to(device)

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self._images) // self._size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        order = torch.randperm(len(self._images), generator=generator(self._seed, epoch))
        for step in range(start, len(self)):
            indices = order[step * self._size : (step + 1) * self._size]
            images = self._changed(indices, generator(self._seed, epoch, step))
            yield Batch(images, self._labels[moved(indices, self._device)], indices)

    def _changed(self, indices: Tensor, rng: torch.Generator) -> Tensor:
        places, change = indices.numpy(), self._augmentation
        if change.crop < 1:
            wide = self._pixels(self._images.take_wide(places))
            pixels = crop_and_flip(wide, change.size or self._preprocessing.size, change, rng)
        else:
            pixels = shift_and_flip(self._pixels(self._images.take(places)), change, rng)
        return cut_out(normalise(pixels, self._preprocessing), change.cutout, rng)

    def _pixels(self, pixels: Pixels) -> Tensor:
        return moved(torch.from_numpy(pixels), self._device)


def in_order(
    images: Images, preprocessing: Preprocessing, size: int, device: torch.device
) -> Iterator[Batch]:
    """Every image once, in order, as it is; the last batch may be smaller."""
    labels = torch.from_numpy(images.labels)
    for start in range(0, len(images), size):
        pixels = moved(torch.from_numpy(images.take(slice(start, start + size))), device)
        indices = torch.arange(start, start + len(pixels))
        yield Batch(normalise(pixels, preprocessing), moved(labels[indices], device), indices)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, which the CPU does not wait for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def generator(*seeds: int) -> torch.Generator:
    """A random generator of its own for each tuple of seeds, each ≥ 0."""
    # Their number leads, because numpy takes (1, 0) for (1,).
    (state,) = np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What `Preprocessing.normalise` computes: (n, S, S, 3) to (n, 3, S, S) float32.

    The pixels are uint8, or float32 of the same range, which are overwritten.
    """
    std = moved(torch.tensor(preprocessing.std), pixels.device)
    mean = moved(torch.tensor(preprocessing.mean), pixels.device)
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
    rows = torch.arange(n)[:, None] * size + rows
    rows, columns = moved(rows, pixels.device), moved(columns, pixels.device)
    return pixels.reshape(-1, 3)[rows[:, :, None] * size + columns[:, None, :]]


def crop_and_flip(
    pixels: Tensor, size: int, augmentation: Augmentation, rng: torch.Generator
) -> Tensor:
    """Resize a random rectangle of each image, of aspect 3:4 to 4:3, and mirror half of them.

    Interpolation is bilinear, without the low-pass filter that shrinking by much more than a
    quarter would need: `data.resize` is meant to be little above the input's size.

    Args:
        pixels: (n, R, R, 3) uint8.
    Returns: (n, size, size, 3) float32 in 0..255, not rounded.
    """
    areas, ratios, tops, lefts, flips = torch.rand((5, len(pixels), 1), generator=rng)
    areas = 1 - (1 - augmentation.crop) * areas
    # Beyond 1 / area, a rectangle of this area is longer than the image.
    longest = (-areas.log()).clamp(max=_LOG_ASPECT)
    ratios = ((2 * ratios - 1) * longest).exp()
    heights, widths = (areas / ratios).sqrt(), (areas * ratios).sqrt()
    line = (torch.arange(size) + 0.5) / size
    rows = tops * (1 - heights) + line * heights
    columns = lefts * (1 - widths) + line * widths
    if augmentation.flip:
        columns = torch.where(flips < 0.5, columns.flip(1), columns)
    rows, columns = moved(rows, pixels.device), moved(columns, pixels.device)
    across, down = columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)
    grid = torch.stack((across, down), dim=3)
    images = pixels.permute(0, 3, 1, 2).float()
    # It counts from -1 to 1, from the outer edge of the first pixel to that of the last.
    images = F.grid_sample(images, grid.mul_(2).sub_(1), padding_mode="border", align_corners=False)
    return images.permute(0, 2, 3, 1).contiguous()


def cut_out(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Blank a square of each (n, 3, S, S) normalised image, in place; at the rim it is cut off."""
    side = round(share * images.shape[-1])
    if side == 0:
        return images
    n, size = len(images), images.shape[-1]
    starts = torch.randint(0, size, (2, n, 1), generator=rng) - side // 2
    inside = (torch.arange(size) >= starts) & (torch.arange(size) < starts + side)
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill_(moved(square, images.device), 0.0)


def cut_mix(
    images: Tensor, labels: Tensor, classes: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of each image's partner into it, the same one in the whole batch.

    (Yun et al., CutMix, ICCV 2019.)

    Args:
        images: (n, 3, S, S), changed in place. labels: (n,) int64.
    Returns: images, and targets (n, classes): each label by its share of the area.
    """
    size = images.shape[-1]
    area, *centre = torch.rand(3, generator=rng).tolist()
    half = area**0.5 / 2
    top, left = (max(0, round(size * (c - half))) for c in centre)
    bottom, right = (min(size, round(size * (c + half))) for c in centre)
    partners = moved(torch.randperm(len(images), generator=rng), images.device)
    images[..., top:bottom, left:right] = images[partners][..., top:bottom, left:right]
    pasted = (bottom - top) * (right - left) / size**2
    targets = F.one_hot(labels, classes).float()
    return images, targets.mul(1 - pasted).add_(targets[partners], alpha=pasted)


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0..size-1 mirrored at the rim, which is not repeated."""
    return (size - 1) - ((size - 1) - index.abs()).abs()
