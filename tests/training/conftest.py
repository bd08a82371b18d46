"""Small data sets on disk."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.training import support

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40)}


def picture(seed, colour=(128, 128, 128), size=(12, 10)):
    """A noisy image of about one colour."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray((noise + np.array(colour)).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Makes a folder of class folders: photos(train={"cat": 3}, test={…}, split_folders=True)."""

    def make(split_folders=False, **splits):
        root = tmp_path / "photos"
        for split, classes in splits.items():
            for label, count in classes.items():
                folder = root / split / label if split_folders else root / label
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    seed = sum(map(ord, split + label)) * 1000 + i
                    picture(seed, COLOURS.get(label, (9, 9, 200))).save(folder / f"{i:03}.png")
        return root

    return make


@pytest.fixture
def parquet(tmp_path):
    """Makes a folder of parquet files from the labels of each split."""

    def make(splits, columns=("image", "label"), label=None, also=None):
        label = label or datasets.ClassLabel(names=["cat", "dog"])
        features = {columns[0]: datasets.Image(), columns[1]: label}
        if also:
            features = {also: datasets.ClassLabel(names=["animal"]), **features}
        (tmp_path / "set").mkdir()
        for split, labels in splits.items():
            images = [{"bytes": _png(i), "path": f"{split}{i}.png"} for i in range(len(labels))]
            rows = {columns[0]: images, columns[1]: labels}
            if also:
                rows[also] = [0] * len(labels)
            table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
            table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
        return tmp_path / "set"

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of three classes, split in train and test."""
    return support.save_pictures(tmp_path_factory.mktemp("pictures") / "pictures")


@pytest.fixture(scope="session")
def fitted(pictures, tmp_path_factory):
    """Folder of a tiny `fit` without interruption: bundle, work, cache."""
    folder = tmp_path_factory.mktemp("fitted")
    done = support.run_training(*support.fit_flags(pictures, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def _png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()
