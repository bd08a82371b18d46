"""Tests of training/batches.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.preprocess import Preprocessing
from training.batches import (
    Augmentation,
    Batches,
    crop_and_flip,
    cut_mix,
    cut_out,
    generator,
    in_order,
    normalise,
    shift_and_flip,
)
from training.data import Images

PREPROCESSING = Preprocessing(8, 8, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
CPU = torch.device("cpu")
SHIFT = Augmentation(shift=0.125, crop=1.0, flip=True, cutout=0.0, size=0)
AUGMENTATION = replace(SHIFT, cutout=0.5)
CROP = replace(AUGMENTATION, crop=0.3)
OFF = replace(SHIFT, shift=0.0, flip=False)


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    rows = np.arange(50)[::-1][:42]  # a set whose places are not those in the array
    return Images(pixels, np.arange(50) % 7, rows, tuple("abcdefg"))


def _batches(images, seed=0, augmentation=AUGMENTATION):
    return Batches(images, PREPROCESSING, size=8, seed=seed, augmentation=augmentation, device=CPU)


def test_normalise_equals_preprocessing():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    tensor = normalise(torch.from_numpy(pixels), PREPROCESSING)
    np.testing.assert_allclose(tensor.numpy(), PREPROCESSING.normalise(pixels), atol=1e-5)
    assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_epoch_takes_each_image_at_most_once_and_its_own_label(images):
    batches = list(_batches(images, augmentation=OFF).epoch(0))
    indices = torch.cat([batch.indices for batch in batches])
    assert len(batches) == len(_batches(images)) == 5
    assert len(set(indices.tolist())) == 40
    for batch in batches:
        pixels = images.take(batch.indices.numpy())
        np.testing.assert_allclose(batch.images, PREPROCESSING.normalise(pixels), atol=1e-5)
        assert batch.labels.tolist() == images.labels[batch.indices].tolist()


@pytest.mark.parametrize("augmentation", [AUGMENTATION, CROP])
def test_epoch_started_late_equals_the_rest_of_a_whole_one(images, augmentation):
    whole = list(_batches(images, augmentation=augmentation).epoch(3))
    torch.rand(7)  # the global random state has no part in it
    rest = list(_batches(images, augmentation=augmentation).epoch(3, start=2))
    assert len(rest) == 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_epoch_other_seed_or_epoch_gives_other_order_and_changes(images, seed, epoch):
    first = next(_batches(images).epoch(0))
    other = next(_batches(images, seed=seed).epoch(epoch))
    assert not torch.equal(first.indices, other.indices)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("augmentation", [AUGMENTATION, CROP])
def test_epoch_changes_an_image_anew_each_time(images, augmentation):
    one = _batches(images.subset(np.arange(1)), augmentation=augmentation)
    seen = {next(one.epoch(epoch)).images.numpy().tobytes() for epoch in range(10)}
    assert len(seen) > 5


def test_epoch_crops_from_the_wide_images_and_else_takes_what_is_served(images):
    wide = np.random.default_rng(1).integers(200, 256, (50, 10, 10, 3), dtype=np.uint8)
    images = replace(images, pixels=images.pixels // 2, wide=wide).subset(np.arange(20))
    lowest = PREPROCESSING.normalise(np.full((1, 1, 3), 200, np.uint8)).min()
    for augmentation in (OFF, SHIFT, replace(SHIFT, crop=0.3)):
        for batch in _batches(images, augmentation=augmentation).epoch(0):
            assert batch.images.shape == (8, 3, 8, 8)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            cropped = augmentation.crop < 1
            assert (batch.images.amin((1, 2, 3)) >= lowest - 1e-5).all() == cropped


def test_epoch_crops_are_as_large_as_set_and_else_as_the_input(images):
    for size, side in ((0, 8), (6, 6), (11, 11)):
        augmentation = replace(SHIFT, crop=0.3, size=size)
        for batch in _batches(images, augmentation=augmentation).epoch(0):
            assert batch.images.shape == (8, 3, side, side)


def test_batches_fewer_images_than_a_batch_gives_one_batch(images):
    few = images.subset(np.arange(3))
    (batch,) = _batches(few).epoch(0)
    assert sorted(batch.indices.tolist()) == [0, 1, 2]


def test_in_order_gives_every_image_once(images):
    batches = list(in_order(images, PREPROCESSING, 16, CPU))
    assert [len(batch.labels) for batch in batches] == [16, 16, 10]
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(42))
    assert torch.cat([b.labels for b in batches]).tolist() == images.labels.tolist()


def test_shift_and_flip_gives_windows_of_the_mirrored_image_each_its_own():
    pixels = torch.arange(64, dtype=torch.uint8).reshape(8, 8, 1).expand(200, 8, 8, 3)
    changed = shift_and_flip(pixels, replace(SHIFT, shift=0.25), generator(0))
    padded = np.pad(pixels[0].numpy(), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {
        window[:, ::way].tobytes(): (y, x, way)
        for y in range(5)
        for x in range(5)
        for way in (1, -1)
        for window in [padded[y : y + 8, x : x + 8]]
    }
    found = [windows[image.numpy().tobytes()] for image in changed]
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(5))
    assert 60 < sum(way == 1 for _, _, way in found) < 140
    assert len(set(found)) > 40


def test_shift_and_flip_turned_off_changes_nothing():
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(shift_and_flip(pixels, OFF, generator(0)), pixels)


def test_crop_and_flip_gives_rectangles_within_the_image_each_its_own():
    # Pixels that tell their own place, which interpolation keeps.
    y, x = np.mgrid[:100, :100]
    pixels = np.stack((y, x, x), axis=2).astype(np.uint8)
    crops = crop_and_flip(
        torch.from_numpy(pixels).expand(400, -1, -1, -1), 80, CROP, generator(0)
    ).numpy()
    tops, heights = _line(crops[:, :, 40, 0])
    lefts, widths = _line(crops[:, 40, :, 1])
    mirrored = widths < 0
    lefts, widths = np.where(mirrored, lefts + widths, lefts), abs(widths)
    areas, ratios = heights * widths / 100**2, widths / heights
    assert 0.3 - 1e-4 < areas.min() < 0.32
    assert 0.98 < areas.max() < 1 + 1e-4
    assert 3 / 4 - 1e-4 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 4 / 3 + 1e-4
    for starts, sides in ((tops, heights), (lefts, widths)):
        free = 100 - sides > 5
        places = (starts / (100 - sides))[free]
        assert places.min() > -0.01
        assert places.max() < 1.01
        assert places.std() == pytest.approx(12**-0.5, abs=0.03)  # of an even spread
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(crops[..., 1], crops[..., 2])


def test_crop_and_flip_rim_is_not_darkened():
    crops = crop_and_flip(torch.full((50, 8, 8, 3), 200, dtype=torch.uint8), 12, CROP, generator(0))
    np.testing.assert_allclose(crops, 200, atol=0.01)


def test_crop_and_flip_almost_whole_equals_the_resized_image():
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((50, 50), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).expand(4, -1, -1, -1)
    crops = crop_and_flip(pixels, 44, replace(OFF, crop=0.9999), generator(0))
    resized = np.array(image.resize((44, 44), Image.Resampling.BILINEAR))
    assert np.abs(crops.numpy() - resized).max() < 4


def test_cut_out_blanks_one_square_per_image():
    images = cut_out(torch.ones(300, 3, 8, 8), 0.5, generator(0))
    blank = images == 0
    assert torch.equal(blank[:, 0], blank[:, 2])
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(blank[:, 0].sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == 4
    assert rows.min() >= 1
    assert len(torch.unique(blank[:, 0], dim=0)) > 20


def _mix(size=10, n=6, seed=0):
    """Images that tell their number in every pixel, mixed; and the targets, of a class for each."""
    images = torch.arange(n).float()[:, None, None, None].expand(n, 3, size, size).clone()
    mixed, targets = cut_mix(images, torch.arange(n), n, generator(seed))
    assert mixed is images
    return mixed, targets


@pytest.mark.parametrize("seed", range(30))
def test_cut_mix_targets_are_the_shares_of_the_area_that_show_each_class(seed):
    mixed, targets = _mix(seed=seed)
    for image, target in zip(mixed, targets, strict=True):
        shares = torch.bincount(image[0].flatten().long(), minlength=6) / 100
        torch.testing.assert_close(target, shares)
        assert torch.equal(image[0], image[2])


def test_cut_mix_pastes_one_rectangle_of_the_batch_the_partners_inside_and_ones_own_outside():
    n, pasted = 6, []
    for seed in range(200):
        mixed, _ = _mix(seed=seed)
        numbers = mixed[:, 0].long()
        changed = numbers != torch.arange(n)[:, None, None]
        inside = changed.any(dim=0)
        rows, columns = inside.any(dim=1), inside.any(dim=0)
        assert torch.equal(inside, rows[:, None] & columns)
        for line in (rows, columns):
            assert (line.int().diff() == 1).sum() <= 1
            assert (line.int().diff() == -1).sum() <= 1
        if inside.any():
            # Each image is the partner of one, and each pixel inside is that partner's.
            partners = numbers[:, inside]
            assert (partners == partners[:, :1]).all()
            assert sorted(partners[:, 0].tolist()) == list(range(n))
        pasted.append(inside.float().mean().item())
    assert min(pasted) < 0.1
    assert max(pasted) > 0.8
    assert len(set(pasted)) > 30


def test_cut_mix_pixels_come_from_the_same_place_in_the_partner():
    images, n = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 5
    for seed in range(20):
        mixed, _ = cut_mix(images.clone(), torch.arange(n), n, generator(seed))
        same = (mixed[:, None] == images[None]).all(dim=2)  # image, source, place
        assert (same.sum(dim=1) == 1).all()


def test_cut_mix_of_one_class_has_whole_targets():
    _, targets = cut_mix(torch.randn(4, 3, 8, 8), torch.full((4,), 2), 3, generator(1))
    assert targets.tolist() == [[0, 0, 1]] * 4


def _line(places):
    """Where a crop begins and how long it is, from the places (n, size) along one side of it."""
    size = places.shape[1]
    # Not from the rim, where nothing is left to interpolate with.
    steps = (places[:, 60] - places[:, 20]) / 40
    return places[:, 20] - 20.5 * steps + 0.5, size * steps


def test_generator_other_seeds_give_other_numbers():
    seeds = [(0,), (1,), (0, 1), (1, 0), (1, 0, 0)]
    draws = {torch.rand(1, generator=generator(*seed)).item() for seed in seeds}
    assert len(draws) == len(seeds)
