"""Tests of training/data.py."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models.preprocess import Preprocessing, preprocess
from training.data import Images, channel_statistics, load_test, load_train, stratified
from training.errors import DataError

PLAIN = Preprocessing(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CROPPED = replace(PLAIN, resize=10)


@pytest.fixture
def train(tmp_path):
    """Loads training and held-out images into a cache of the test's own."""

    def load(root, held_out=2, seed=0, preprocessing=PLAIN, wide=False):
        cache = tmp_path / "cache"
        return load_train(
            str(root), preprocessing, held_out=held_out, seed=seed, cache=cache, wide=wide
        )

    return load


@pytest.fixture
def held_back(tmp_path):
    """Loads test images into the same cache."""

    def load(root, names=("cat", "dog")):
        return load_test(str(root), PLAIN, names=names, cache=tmp_path / "cache")

    return load


def _content(images):
    return {images.take(slice(i, i + 1)).tobytes() for i in range(len(images))}


@pytest.mark.parametrize("preprocessing", [PLAIN, CROPPED, replace(PLAIN, resize=9)])
def test_load_train_pixels_equal_served_preprocessing(photos, train, preprocessing):
    root = photos(train={"cat": 3, "dog": 4}, test={"cat": 1, "dog": 1}, split_folders=True)
    images, held = train(root, preprocessing=preprocessing, wide=True)
    served = {
        preprocess(file.read_bytes(), preprocessing, 10_000).tobytes()
        for file in (root / "train").rglob("*.png")
    }
    both = [images.take(slice(None)), held.take(slice(None))]
    trained = {PLAIN.normalise(pixels).tobytes() for pixels in np.concatenate(both)}
    assert trained == served
    assert images.pixels.dtype == np.uint8


def test_load_train_wide_adds_what_serving_crops_away(photos, train):
    images, held = train(photos(train={"cat": 10, "dog": 10}), preprocessing=CROPPED, wide=True)
    for part in (images, held, images.subset(np.array([3, 1]))):
        wide = part.take_wide(slice(None))
        assert wide.shape == (len(part), 10, 10, 3)
        assert np.array_equal(wide[:, 1:9, 1:9], part.take(slice(None)))


def test_load_train_not_wide_decodes_only_what_is_served(photos, train, tmp_path):
    images, _ = train(photos(train={"cat": 3, "dog": 3}), preprocessing=CROPPED)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert np.array_equal(images.take_wide(slice(None)), images.take(slice(None)))


def test_load_train_same_content_from_folder_and_parquet(photos, parquet, train):
    folder, held_folder = train(photos(train={"cat": 5, "dog": 5}))
    table, held_table = train(parquet({"train": [0, 1] * 5, "test": [0, 1]}))
    assert folder.names == table.names == ("cat", "dog")
    assert folder.take(slice(None)).shape[1:] == table.take(slice(None)).shape[1:] == (8, 8, 3)
    assert len(held_folder) == len(held_table) == 2


def test_load_train_labels_belong_to_their_pixels(photos, train):
    images, held = train(photos(train={"cat": 10, "dog": 10}))
    for part in (images, held):
        red, green = part.take(slice(None))[..., :2].mean(axis=(1, 2)).T
        assert np.array_equal(part.labels == 0, red > green)


def test_load_train_held_out_and_training_images_never_meet(photos, train):
    images, held = train(photos(train={"cat": 20, "dog": 20}), held_out=8)
    assert not _content(images) & _content(held)
    assert np.bincount(held.labels).tolist() == [4, 4]


def test_load_train_same_seed_holds_out_the_same_images(photos, train):
    root = photos(train={"cat": 20, "dog": 20})
    first, again, other = (train(root, seed=seed)[1].rows.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_load_train_held_out_zero_is_a_tenth(photos, train):
    root = photos(train={"cat": 20, "dog": 20}, test={"cat": 1, "dog": 1}, split_folders=True)
    assert len(train(root, held_out=0)[1]) == 4


def test_load_train_held_out_zero_is_no_more_than_the_most(photos, train, monkeypatch):
    monkeypatch.setattr("training.data.HELD_OUT_MOST", 2)
    assert len(train(photos(train={"cat": 20, "dog": 20}), held_out=0)[1]) == 2


def test_load_train_held_out_too_large_names_the_setting(photos, train):
    root = photos(train={"cat": 3, "dog": 3})
    with pytest.raises(DataError, match=r"data\.held_out is 50, but data .* has 5 training images"):
        train(root, held_out=50)


def test_load_test_without_a_split_is_what_training_leaves_out(photos, train, held_back):
    root = photos(train={"cat": 20, "dog": 20})
    tests = held_back(root)
    assert len(tests) == 8
    for seed in (0, 1):  # whatever the seed of the run
        images, held = train(root, seed=seed)
        assert not _content(tests) & (_content(images) | _content(held))
        assert len(tests) + len(images) + len(held) == 40


def test_load_test_takes_the_test_split_before_validation(photos, held_back):
    counts = {"cat": 2, "dog": 2}
    root = photos(
        train=counts, validation={"cat": 3, "dog": 3}, test={"cat": 1, "dog": 1}, split_folders=True
    )
    assert len(held_back(root)) == 2


def test_load_test_labels_follow_the_trained_order(photos, held_back):
    root = photos(train={"cat": 3, "dog": 3}, test={"dog": 2}, split_folders=True)
    assert held_back(root, ("cat", "emu", "dog")).labels.tolist() == [2, 2]


def test_load_test_class_that_was_not_trained_is_named(photos, held_back):
    root = photos(train={"cat": 3, "dog": 3}, test={"emu": 2}, split_folders=True)
    with pytest.raises(DataError, match="class 'emu', which was not trained"):
        held_back(root)


def test_load_train_class_of_test_images_that_is_not_trained_is_named(photos, train):
    root = photos(train={"cat": 3, "dog": 3}, test={"emu": 2}, split_folders=True)
    with pytest.raises(DataError, match="class 'emu', which was not trained"):
        train(root)


def test_load_train_test_image_without_a_label_is_refused(parquet, train):
    with pytest.raises(DataError, match="images without a label, or none, in 'test'"):
        train(parquet({"train": [0, 1] * 3, "test": [0, -1]}))


def test_load_train_does_not_read_test_images(photos, train):
    root = photos(train={"cat": 3, "dog": 3}, test={"cat": 1, "dog": 1}, split_folders=True)
    next((root / "test" / "cat").iterdir()).write_bytes(b"broken")
    train(root)


@pytest.mark.parametrize("content", [b"", b"just text", "truncated"])
def test_load_train_unreadable_image_names_the_file(photos, train, tmp_path, content):
    root = photos(train={"cat": 3, "dog": 3})
    bad = root / "dog" / "001.png"
    bad.write_bytes(bad.read_bytes()[:60] if content == "truncated" else content)
    with pytest.raises(DataError, match=r"image .*dog.001\.png cannot be read"):
        train(root)
    assert not list((tmp_path / "cache").iterdir())


def test_load_train_one_class_only_is_refused(photos, train):
    with pytest.raises(DataError, match="one class only"):
        train(photos(train={"cat": 5}))


def test_load_train_class_without_images_is_named(parquet, train):
    with pytest.raises(DataError, match="no training image of the class 'dog'"):
        train(parquet({"train": [0, 0, 0]}))


def test_load_train_image_without_a_label_is_refused(parquet, train):
    with pytest.raises(DataError, match="without a label"):
        train(parquet({"train": [0, 1, -1]}))


def test_load_train_second_time_reads_the_cache(photos, train, tmp_path):
    root = photos(train={"cat": 3, "dog": 3})
    train(root)
    (entry,) = (tmp_path / "cache").iterdir()
    written = entry.stat().st_mtime_ns
    images, _ = train(root)
    assert entry.stat().st_mtime_ns == written
    assert isinstance(images.pixels, np.memmap)


def test_load_train_changed_image_is_decoded_again(photos, train):
    root = photos(train={"cat": 3, "dog": 3})
    before = train(root)[0].pixels.copy()
    Image.new("RGB", (20, 20), "white").save(root / "cat" / "000.png")
    assert not np.array_equal(train(root)[0].pixels, before)


def test_load_train_other_size_is_decoded_again(photos, train):
    root = photos(train={"cat": 3, "dog": 3})
    train(root)
    bigger = Preprocessing(10, 10, PLAIN.mean, PLAIN.std)
    assert train(root, preprocessing=bigger)[0].pixels.shape[1:] == (10, 10, 3)


@pytest.fixture
def digest(train):
    """Digest of the training split of a folder."""
    return lambda root: train(root, held_out=1)[0].digest


def test_load_train_digest_is_the_same_of_any_copy_at_any_size(photos, train, digest, tmp_path):
    root = photos(train={"cat": 3, "dog": 3}, test={"cat": 1}, split_folders=True)
    expected = digest(root)
    copy = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    next((copy / "test" / "cat").iterdir()).write_bytes(b"test images do not matter")
    assert digest(copy) == expected
    assert train(root, preprocessing=CROPPED)[1].digest == expected


def test_load_train_digest_is_another_of_other_images(photos, digest):
    root = photos(train={"cat": 4, "dog": 4})
    found = [digest(root)]
    Image.new("RGB", (20, 20), "white").save(root / "cat" / "000a.png")
    found.append(digest(root))
    (root / "cat" / "003.png").unlink()  # as many as before
    found.append(digest(root))
    Image.new("RGB", (20, 20), "blue").save(root / "cat" / "000.png")
    found.append(digest(root))
    (root / "dog").rename(root / "emu")
    found.append(digest(root))
    assert len(set(found)) == 5


def test_load_train_digest_holds_the_labels(parquet, digest, tmp_path):
    found = []
    for name, labels in (("one", [0, 0, 1, 1]), ("other", [0, 1, 0, 1])):
        root = parquet({"train": labels, "test": [0]})
        found.append(digest(root.rename(tmp_path / name)))
    assert found[0] != found[1]


def test_load_train_full_disk_is_one_sentence_and_leaves_nothing(
    photos, train, tmp_path, small_files
):
    root = photos(train={"cat": 3, "dog": 3})
    too_large = r"data cache .*cache cannot be written: .*too large"
    # Enough for the labels, not for the pixels.
    with small_files(600), pytest.raises(DataError, match=too_large):
        train(root)
    assert not list((tmp_path / "cache").iterdir())


def test_stratified_keeps_each_class_share_and_the_exact_count():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    mask = stratified(labels, 33, seed=0)
    assert mask.sum() == 33
    assert np.abs(np.bincount(labels[mask]) - np.array([20.6, 10.3, 2.1])).max() <= 1


def test_stratified_order_of_images_is_random():
    mask = stratified(np.zeros(1000, np.int64), 500, seed=0)
    assert 200 < mask[:500].sum() < 300


def test_channel_statistics_equal_those_of_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    labels = np.zeros(600, np.int64)
    images = Images(pixels, labels, np.arange(0, 600, 2), ("only",))
    mean, std = channel_statistics(images)
    values = pixels[::2] / 255
    assert mean == pytest.approx(values.mean(axis=(0, 1, 2)), abs=1e-4)
    assert std == pytest.approx(values.std(axis=(0, 1, 2)), abs=1e-4)


def test_channel_statistics_of_one_colour_can_be_divided_by():
    pixels = np.full((3, 4, 4, 3), 255, np.uint8)
    images = Images(pixels, np.zeros(3, np.int64), np.arange(3), ("only",))
    assert min(channel_statistics(images)[1]) > 0
