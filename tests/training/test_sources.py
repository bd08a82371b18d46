"""Tests of training/sources.py."""

import datasets
import pytest

from training.errors import DataError
from training.sources import open_source


def test_open_source_class_folders_gives_sorted_classes_and_files(photos, tmp_path):
    source = open_source(str(photos(train={"dog": 12, "cat": 13})), tmp_path / "cache")
    rows = source.dataset("train")
    files = [image["path"] for image in rows["image"]]
    assert source.splits() == ["train"]
    assert files == sorted(files)
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows["label"][:] == [0] * 13 + [1] * 12


def test_open_source_train_and_test_folders_are_splits(photos, tmp_path):
    root = photos(train={"cat": 2, "dog": 2}, validation={"cat": 1, "dog": 1}, split_folders=True)
    source = open_source(str(root), tmp_path / "cache")
    assert source.splits() == ["train", "validation"]
    assert len(source.dataset("validation")) == 2


def test_open_source_class_called_train_is_a_class(photos, tmp_path):
    source = open_source(str(photos(train={"train": 2, "plane": 2})), tmp_path / "cache")
    assert source.dataset("train").features["label"].names == ["plane", "train"]


def test_folder_key_changed_file_changes(photos, tmp_path):
    root = photos(train={"cat": 1, "dog": 1})
    source = open_source(str(root), tmp_path / "cache")
    before = source.key("train")
    assert open_source(str(root), tmp_path / "cache").key("train") == before
    next((root / "cat").iterdir()).write_bytes(b"another")
    assert source.key("train") != before


def test_folder_hidden_files_are_no_images(photos, tmp_path):
    root = photos(train={"cat": 1, "dog": 1})
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / ".cache").mkdir()
    assert len(open_source(str(root), tmp_path / "cache").dataset("train")) == 2


def test_folder_empty_class_is_named(photos, tmp_path):
    root = photos(train={"cat": 2, "dog": 2})
    (root / "emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*emu is empty"):
        open_source(str(root), tmp_path / "cache").dataset("train")


def test_open_source_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no class folders and no parquet"):
        open_source(str(tmp_path / "empty"), tmp_path / "cache")


def test_open_source_missing_path_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' is neither a folder nor a data set"):
        open_source(str(tmp_path / "nowhere"), tmp_path / "cache")


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("photo", "kind")])
def test_dataset_source_columns_are_found_by_type(parquet, tmp_path, columns):
    root = parquet({"train": [0, 1, 1]}, columns=columns)
    rows = open_source(str(root), tmp_path / "cache").dataset("train")
    assert rows.column_names == ["image", "label"]
    assert rows["label"][:] == [0, 1, 1]
    assert rows[0]["image"]["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "path", "configuration"),
    [("owner/pets", "owner/pets", None), ("owner/pets:small", "owner/pets", "small")],
)
def test_dataset_source_of_the_hub_may_name_a_configuration(
    parquet, tmp_path, monkeypatch, name, path, configuration
):
    asked, load = [], datasets.load_dataset_builder
    local = str(parquet({"train": [0, 1]}))

    def from_hub(path, name, cache_dir):
        asked.append((path, name))
        return load(local, cache_dir=cache_dir)

    monkeypatch.setattr(datasets, "load_dataset_builder", from_hub)
    assert open_source(name, tmp_path / "cache").dataset("train")["label"][:] == [0, 1]
    assert asked == [(path, configuration)]


def test_dataset_source_text_labels_become_classes(parquet, tmp_path):
    root = parquet({"train": ["dog", "cat"]}, label=datasets.Value("string"))
    rows = open_source(str(root), tmp_path / "cache").dataset("train")
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows["label"][:] == [1, 0]


def test_dataset_source_fine_labels_are_preferred_to_coarse_ones(parquet, tmp_path):
    root = parquet({"train": [0, 1]}, columns=("image", "fine_label"), also="coarse_label")
    rows = open_source(str(root), tmp_path / "cache").dataset("train")
    assert rows["label"][:] == [0, 1]


def test_dataset_source_no_label_column_names_the_columns(parquet, tmp_path):
    root = parquet({"train": [0, 1]}, columns=("image", "size"), label=datasets.Value("int64"))
    with pytest.raises(DataError, match=r"no label column among its columns .*size"):
        open_source(str(root), tmp_path / "cache").dataset("train")


def test_dataset_source_no_image_column_names_the_columns(tmp_path):
    rows = datasets.Dataset.from_dict({"label": [0, 1]})
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(DataError, match=r"no image column among its columns label"):
        open_source(str(tmp_path / "set"), tmp_path / "cache").dataset("train")


def test_dataset_source_no_train_split_names_the_splits(parquet, tmp_path):
    with pytest.raises(DataError, match=r"no split named 'train', only test"):
        open_source(str(parquet({"test": [0, 1]})), tmp_path / "cache")


def test_dataset_source_broken_parquet_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"set' is neither a folder nor a data set that can be"):
        open_source(str(tmp_path / "set"), tmp_path / "cache")
