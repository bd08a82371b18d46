"""Where labelled images come from: a folder of class folders, a local data set, or the hub.

All three become one thing, a `datasets.Dataset` with the columns `image` (still encoded: bytes,
path) and `label` (a ClassLabel), so that everything after has one code path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import datasets

from training.errors import DataError

TEST_SPLITS = ("test", "validation", "valid", "val")
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_JUNK = ("thumbs.db", "desktop.ini")


class Source(Protocol):
    """A data source with named splits."""

    name: str

    def splits(self) -> list[str]:
        """Names of the splits; "train" is one of them."""
        ...

    def key(self, split: str) -> str:
        """Text that changes when the split's images may have changed."""
        ...

    def dataset(self, split: str) -> datasets.Dataset:
        """The split's encoded images and labels."""
        ...


def open_source(name: str, cache: Path) -> Source:
    """Find what a data setting names: a folder here, otherwise a data set of the hub.

    Args:
        name: path of a folder of class folders (whole, or below `train/` and `test/`), path of a
            data set of parquet files, or a hub id, with `:configuration` where it has several.
        cache: folder for what `datasets` prepares.

    Raises:
        DataError: nothing of that name can be read, or it has no training images.
    """
    root = Path(name).expanduser()
    if root.is_dir() and not any(root.rglob("*.parquet")):
        return FolderSource(root)
    return DatasetSource(name, cache)


class FolderSource:
    """Class folders directly below a folder, or below its `train/` and `test/` folders."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        # A class may itself be called "train": as a split, the folder holds class folders.
        split = root / "train"
        self._folders = {"train": split if _class_folders(split) else root}
        if self._folders["train"] != root:
            found = [s for s in TEST_SPLITS if _class_folders(root / s)]
            self._folders.update({s: root / s for s in found})
        if not _class_folders(self._folders["train"]):
            raise DataError(f"data {root} has no class folders and no parquet files")

    def splits(self) -> list[str]:
        return list(self._folders)

    def key(self, split: str) -> str:
        digest = hashlib.sha256()
        for file, label in self._files(split):
            stat = file.stat()
            line = f"{label}/{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def dataset(self, split: str) -> datasets.Dataset:
        files = self._files(split)
        names = [folder.name for folder in _class_folders(self._folders[split])]
        features = datasets.Features(
            image=datasets.Image(decode=False), label=datasets.ClassLabel(names=names)
        )
        rows = {"image": [str(f) for f, _ in files], "label": [label for _, label in files]}
        return datasets.Dataset.from_dict(rows, features=features)

    def _files(self, split: str) -> list[tuple[Path, str]]:
        """Every image file with its class, in an order that does not depend on the machine."""
        found = []
        for folder in _class_folders(self._folders[split]):
            files = sorted(file for file in folder.iterdir() if _may_be_image(file))
            if not files:
                raise DataError(f"class folder {folder} is empty: add images or remove it")
            found += [(file, folder.name) for file in files]
        return found


class DatasetSource:
    """A data set that Hugging Face `datasets` reads: local parquet files or a hub id."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        local = Path(name).expanduser()
        path, _, configuration = (
            (str(local.resolve()), "", "") if local.is_dir() else (name.partition(":"))
        )
        try:
            self._builder = datasets.load_dataset_builder(
                path, configuration or None, cache_dir=str(cache / "datasets")
            )
            self._builder.download_and_prepare()
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"data {name!r} is neither a folder nor a data set that can be read: "
                f"{_first_line(error)}"
            ) from error
        if "train" not in self.splits():
            raise DataError(
                f"data {name!r} has no split named 'train', only {', '.join(self.splits())}"
            )

    def splits(self) -> list[str]:
        return [str(split) for split in self._builder.info.splits or ()]

    def key(self, split: str) -> str:
        # The folder's name holds a hash of the files and their times, or of the hub's revision.
        return f"{self._builder.cache_dir}\0{split}"

    def dataset(self, split: str) -> datasets.Dataset:
        rows = self._builder.as_dataset(split)
        image, label = _image_column(rows, self.name), _label_column(rows, self.name)
        rows = rows.select_columns([image, label])
        rows = rows.rename_columns({image: "image", label: "label"})
        if not isinstance(rows.features["label"], datasets.ClassLabel):
            rows = rows.class_encode_column("label")
        return rows.cast_column("image", datasets.Image(decode=False))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _may_be_image(file: Path) -> bool:
    junk = file.name.startswith(".") or file.name.lower() in _JUNK
    return file.is_file() and not junk


def _image_column(rows: datasets.Dataset, name: str) -> str:
    typed = [c for c, f in rows.features.items() if isinstance(f, datasets.Image)]
    named = [c for c in _IMAGE_COLUMNS if c in rows.column_names]
    return _choose([*(c for c in named if c in typed), *typed, *named], "image", rows, name)


def _label_column(rows: datasets.Dataset, name: str) -> str:
    typed = [c for c, f in rows.features.items() if isinstance(f, datasets.ClassLabel)]
    named = [c for c in _LABEL_COLUMNS if c in rows.column_names]
    return _choose([*(c for c in named if c in typed), *typed, *named], "label", rows, name)


def _choose(candidates: list[str], kind: str, rows: datasets.Dataset, name: str) -> str:
    if not candidates:
        columns = ", ".join(rows.column_names)
        raise DataError(f"data {name!r} has no {kind} column among its columns {columns}")
    return candidates[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
