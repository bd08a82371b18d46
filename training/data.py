"""Labelled images in memory: decoded once, cached on disk, split without leaks. No torch.

Training, held-out and test images never mix. Held-out images are a share of the *training*
images; every choice and calibration uses them. Test images are read by `load_test` alone, which
nothing calls that chooses; before, only their labels are checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from models.preprocess import ImageError, Preprocessing, decode
from training.errors import DataError
from training.sources import TEST_SPLITS, Source, open_source

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# Raise it when the same file no longer gives the same entry: older caches are then ignored.
CACHE_VERSION = 3
MAX_PIXELS = 200_000_000
# Where a source has no test split, this share of it is set aside, by a seed of its own: the test
# images must be the same ones whatever the seed of a training run.
TEST_SHARE, TEST_SEED = 0.2, 0
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 5000

_CHUNK = 256


@dataclass(frozen=True)
class Images:
    """A set of decoded images: some rows of a cached array, which is not copied.

    Attributes:
        pixels: (M, S, S, 3) uint8, RGB, every image of the split, mapped from disk.
        all_labels: (M,) int64, index into `names`.
        rows: (N,) int64, the images of this set.
        names: of the classes.
        wide: (M, R, R, 3) uint8, R ≥ S, the same images before their centre is cropped, to crop
            them at random; None where nobody does.
        digest: of the whole split, see `_digest`.
    """

    pixels: Pixels
    all_labels: Labels
    rows: Labels
    names: tuple[str, ...]
    wide: Pixels | None = None
    digest: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Labels:
        """(N,) int64."""
        return self.all_labels[self.rows]

    def take(self, indices: npt.NDArray[np.integer[Any]] | slice) -> Pixels:
        """(n, S, S, 3) uint8, a copy of the set's images at `indices` in 0..N-1."""
        return self.pixels[self.rows[indices]]

    def take_wide(self, indices: npt.NDArray[np.integer[Any]] | slice) -> Pixels:
        """(n, R, R, 3) uint8, as `take` but of `wide`, where there is one."""
        return (self.pixels if self.wide is None else self.wide)[self.rows[indices]]

    def subset(self, indices: npt.NDArray[Any]) -> Images:
        """The set's images at `indices`, which may also be an (N,) mask."""
        return replace(self, rows=self.rows[indices])


def load_train(
    source: str,
    preprocessing: Preprocessing,
    *,
    held_out: int,
    seed: int,
    cache: Path,
    wide: bool = False,
) -> tuple[Images, Images]:
    """Training images and held-out images, both from the source's training split.

    Args:
        source: see `training.sources.open_source`.
        preprocessing: its `size` and `resize` matter, its statistics do not.
        held_out: images held out, each class by its share; 0 means a tenth, at most 5000.
        seed: decides which images are held out.
        cache: folder for decoded images, which later runs map into memory.
        wide: whether the images will be cropped at random.

    Raises:
        DataError: the source, a class or an image cannot be used, or test images are of classes
            that are not trained, or of none.
    """
    opened = open_source(source, cache)
    images = _decoded(opened, "train", preprocessing, cache)
    _check_classes(images, source)
    if wide:
        # Decoded apart: the centre cut from these may differ from what is served by a level or two.
        squares = replace(preprocessing, size=preprocessing.resize)
        images = replace(images, wide=_decoded(opened, "train", squares, cache).pixels)
    split = _test_split(opened)
    if split is None:
        images = images.subset(~_without_split(images))
    else:
        _check_tests(opened.dataset(split), source, split, images.names)
    count = held_out or min(round(HELD_OUT_SHARE * len(images)), HELD_OUT_MOST)
    if not 0 < count < len(images):
        raise DataError(
            f"data.held_out is {count}, but data {source!r} has {len(images)} training images"
        )
    held = stratified(images.labels, count, seed)
    return images.subset(~held), images.subset(held)


def load_test(
    source: str, preprocessing: Preprocessing, *, names: Sequence[str], cache: Path
) -> Images:
    """Test images: to measure what was chosen, never to choose.

    The split named test is taken, or else validation. A source that has neither gives the fifth
    of its images that `load_train` leaves out.

    Args:
        names: the classes that were trained; labels are indices into it.

    Raises:
        DataError: the source or an image cannot be used, or a class was not trained.
    """
    opened = open_source(source, cache)
    split = _test_split(opened)
    images = _decoded(opened, split or "train", preprocessing, cache)
    if split is None:
        images = images.subset(_without_split(images))
    _check_trained(images.names, names, source)
    index = np.array([list(names).index(name) for name in images.names], np.int64)
    return replace(images, all_labels=index[images.all_labels], names=tuple(names))


def stratified(labels: Labels, count: int, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) mask of `count` random images, or all, each class by its share (one more or less)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    mask = np.zeros(len(labels), np.bool_)
    mask[np.argsort(place, kind="stable")[:count]] = True
    return mask


def channel_statistics(
    images: Images,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels, of values in [0, 1]."""
    # Counts of the 256 values are exact and need no second pass.
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images.take(slice(start, start + _CHUNK))
        for channel in range(3):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    # A set of one colour has no spread to divide by.
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 1e-6))
    r, g, b = (float(m) for m in mean.round(4))
    sr, sg, sb = (float(s) for s in std.round(4))
    return (r, g, b), (sr, sg, sb)


def _test_split(source: Source) -> str | None:
    splits = source.splits()
    return next((split for split in TEST_SPLITS if split in splits), None)


def _without_split(images: Images) -> npt.NDArray[np.bool_]:
    """Mask of the images that serve as test images where the source names none."""
    return stratified(images.labels, round(TEST_SHARE * len(images)), TEST_SEED)


def _check_classes(images: Images, source: str) -> None:
    if len(images.names) < 2:
        raise DataError(f"data {source!r} has one class only: a classifier needs at least two")
    counts = np.bincount(images.labels, minlength=len(images.names))
    if not counts.all():
        empty = images.names[int(counts.argmin())]
        raise DataError(f"data {source!r} has no training image of the class {empty!r}")


def _check_tests(rows: datasets.Dataset, source: str, split: str, names: Sequence[str]) -> None:
    """Complain now of what would stop a run at its end; no image is looked at."""
    _labels(rows, source, split)
    _check_trained(rows.features["label"].names, names, source)


def _check_trained(found: Sequence[str], names: Sequence[str], source: str) -> None:
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(f"data {source!r} has the class {unknown[0]!r}, which was not trained")


def _labels(rows: datasets.Dataset, source: str, split: str) -> Labels:
    labels = np.array(rows.with_format("numpy")["label"][:], np.int64)
    if len(labels) == 0 or labels.min() < 0:
        raise DataError(f"data {source!r} has images without a label, or none, in {split!r}")
    return labels


def _decoded(source: Source, split: str, preprocessing: Preprocessing, cache: Path) -> Images:
    """A split's images from the cache, decoded into it first if need be."""
    key = [CACHE_VERSION, source.key(split), split, preprocessing.size, preprocessing.resize]
    folder = cache / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    if not folder.exists():
        rows = source.dataset(split)
        try:
            _write_cache(folder, rows, source.name, split, preprocessing)
        except OSError as error:
            raise DataError(f"data cache {cache} cannot be written: {error}") from error
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    names = tuple(json.loads((folder / "names.json").read_text()))
    labels, digest = np.load(folder / "labels.npy"), (folder / "digest").read_text()
    return Images(pixels, labels, np.arange(len(pixels)), names, digest=digest)


def _write_cache(
    folder: Path, rows: datasets.Dataset, name: str, split: str, preprocessing: Preprocessing
) -> None:
    """Write the folder whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".decoding-", dir=folder.parent))
    try:
        np.save(scratch / "labels.npy", _labels(rows, name, split))
        (scratch / "names.json").write_text(json.dumps(rows.features["label"].names))
        _write_pixels(scratch / "pixels.npy", rows, name, split, preprocessing)
        (scratch / "digest").write_text(_digest(rows))
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another run was first, with the same
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digest(rows: datasets.Dataset) -> str:
    """SHA-256 of the images as they are stored and their labels, in order, wherever they lie."""
    digest = hashlib.sha256(json.dumps(rows.features["label"].names).encode())
    for batch in rows.iter(_CHUNK):
        for encoded, label in zip(batch["image"], batch["label"], strict=True):
            digest.update(hashlib.sha256(_content(encoded)).digest() + label.to_bytes(8, "little"))
    return digest.hexdigest()


def _content(encoded: dict[str, Any]) -> bytes:
    content: bytes | None = encoded["bytes"]
    return Path(encoded["path"]).read_bytes() if content is None else content


def _write_pixels(
    path: Path, rows: datasets.Dataset, name: str, split: str, preprocessing: Preprocessing
) -> None:
    """Decode and write in order: a mapped array would end the process when the disk is full."""
    shape = (len(rows), preprocessing.size, preprocessing.size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    bar = tqdm(total=len(rows), desc=f"decoding {split}", unit="img", disable=None)
    with path.open("wb") as file, bar:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in _decode_chunks(rows, name, preprocessing):
            file.write(chunk.tobytes())
            bar.update(len(chunk))


def _decode_chunks(
    rows: datasets.Dataset, name: str, preprocessing: Preprocessing
) -> Iterator[Pixels]:
    def work(start: int) -> Pixels:
        encoded = rows[start : start + _CHUNK]["image"]
        return np.stack(
            [
                _decode_one(e, f"{name}, image {start + i}", preprocessing)
                for i, e in enumerate(encoded)
            ]
        )

    # Pillow decodes and resizes outside the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(work, range(0, len(rows), _CHUNK))


def _decode_one(encoded: dict[str, Any], place: str, preprocessing: Preprocessing) -> Pixels:
    """Decode as the service does; `place` says where the image is if it has no file of its own."""
    path = encoded["path"]
    where = path if encoded["bytes"] is None else f"{place} ({path})" if path else place
    try:
        return preprocessing.pixels(decode(_content(encoded), MAX_PIXELS, preprocessing.resize))
    except (ImageError, OSError) as error:
        raise DataError(f"image {where} cannot be read: {error}") from error
