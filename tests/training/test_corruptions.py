"""Tests of training/corruptions.py."""

import numpy as np
import pytest

from training.corruptions import SETTINGS, STRENGTHS, corrupt


def _photos(size=32, count=4):
    """Smooth shapes with edges, not too near black and white."""
    line = np.linspace(0, 9, size)
    waves = np.sin(line)[:, None] * np.sin(line * 1.3) > 0.2
    levels = np.linspace(60, 190, 3 * count).reshape(count, 1, 1, 3)
    return (levels + 40 * waves[None, :, :, None]).astype(np.uint8)


def _distance(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("kind", SETTINGS)
def test_corrupt_stronger_changes_more_and_leaves_the_original(kind):
    photos = _photos()
    before = photos.copy()
    changed = [corrupt(photos, kind, strength, seed=0) for strength in STRENGTHS]
    distances = [_distance(photos, one) for one in changed]
    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[-1] < 40
    assert np.array_equal(photos, before)
    assert all((one.shape, one.dtype) == (photos.shape, np.uint8) for one in changed)


def test_noise_has_the_deviation_told_and_follows_the_seed():
    grey = np.full((3, 40, 40, 3), 128, np.uint8)
    noisy = corrupt(grey, "noise", 5, seed=1)
    assert (noisy - 128.0).std() == pytest.approx(255 * 0.10, rel=0.03)
    assert np.array_equal(noisy, corrupt(grey, "noise", 5, seed=1))
    assert not np.array_equal(noisy, corrupt(grey, "noise", 5, seed=2))
    assert not np.array_equal(noisy[0], noisy[1])


@pytest.mark.parametrize("size", [32, 96])
def test_blur_spreads_a_point_by_the_deviation_told_of_any_size(size):
    point = np.zeros((1, size, size, 3), np.uint8)
    middle = size // 2
    block = slice(middle - size // 16, middle + size // 16)
    point[:, block, block] = 255
    profile = corrupt(point, "blur", 5, seed=0)[0, middle, :, 0].astype(float)
    places = np.arange(size) - middle + 0.5
    variance = (profile * places**2).sum() / profile.sum()
    block_variance = ((size // 8) ** 2 - 1) / 12
    assert np.sqrt(variance - block_variance) == pytest.approx(size / 32, rel=0.25)
