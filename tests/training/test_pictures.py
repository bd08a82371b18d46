"""Tests of training/pictures.py."""

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from training import pictures
from training.findings import AtBudget, Bin, Corrupted, Decile, OfClass
from training.pictures import Tile


def _size(content):
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return image.size


def _classes(count, fraction=0.4):
    return [
        OfClass(f"class {i}", 10, fraction + i / 1000, 0.2, (0.1, 0.9), 0.8, 0.9)
        for i in range(count)
    ]


def _at(budget, widths=(4.0, 1.5), accuracy=0.8):
    bins = [Bin(0.3, 0.5, 0.4), Bin(0.7, 0.95, accuracy)]
    return AtBudget(budget, budget, 0.1, accuracy, 7, 0.3, list(widths), bins, 0.08, 0.5)


def _corrupted(accuracy):
    return [
        Corrupted(kind, s, 0.4 + s / 20, accuracy - s / 10, 0.9 - s / 10)
        for kind in ("noise", "jpeg")
        for s in range(6)
    ]


def _tile(label="cat", answer="cat", shade=90):
    return Tile(np.full((12, 12, 3), shade, np.uint8), label, answer, 0.31)


def _corruption(accuracy):
    samples = dict.fromkeys(("noise", "jpeg"), np.full((12, 72, 3), 90, np.uint8))
    names = {"noise": "Noise", "jpeg": "JPEG"}
    return pictures.of_corruption(_corrupted(accuracy), samples, names, "title")


DRAWN = {
    "classes": lambda x: pictures.of_classes(_classes(10, x), "title"),
    "images": lambda x: pictures.of_images([_tile()] * 5, [_tile(shade=int(99 * x))] * 3, "title"),
    "widths": lambda x: pictures.of_widths([_at(0.4, (4, 2 * x)), _at(1.0)], ["a", "b"], 4, "t"),
    "corruption": _corruption,
    "reliability": lambda x: pictures.of_reliability([_at(0.4, accuracy=x), _at(1.0)], "title"),
    "difficulty": lambda x: pictures.of_difficulty([Decile(0.1, 0.2, x)] * 10, "title"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_picture_is_900_wide_and_changes_with_what_was_measured(name):
    one, other = DRAWN[name](0.5), DRAWN[name](0.7)
    assert one != other
    width, height = _size(one)
    assert width == 900
    assert 200 < height < 1000


def test_corruption_without_samples_is_lower():
    names = {"noise": "Noise", "jpeg": "JPEG"}
    without = pictures.of_corruption(_corrupted(0.5), {}, names, "title")
    assert _size(without)[0] == 900
    assert _size(without)[1] < _size(_corruption(0.5))[1]


def test_reliability_leaves_out_bins_of_few_images():
    point = _at(0.4)
    few, some = (
        replace(point, bins=[*point.bins, Bin(times * pictures.LEAST_SHARE, 0.1, 0.9)])
        for times in (0.5, 2)
    )
    one, alike, other = (pictures.of_reliability([at], "title") for at in (point, few, some))
    assert one == alike != other


@pytest.mark.parametrize("name", DRAWN)
def test_picture_is_the_same_whatever_the_user_likes(name):
    plain = DRAWN[name](0.5)
    with mpl.rc_context({"savefig.dpi": 50, "lines.linewidth": 9, "axes.grid": True}):
        assert DRAWN[name](0.5) == plain


def test_of_images_marks_a_wrong_answer():
    right = pictures.of_images([_tile("cat", "cat")], [_tile()], "title")
    wrong = pictures.of_images([_tile("dog", "cat")], [_tile()], "title")

    def reddest(content):
        with Image.open(io.BytesIO(content)) as image:
            r, g, _ = np.moveaxis(np.asarray(image.convert("RGB"), int), 2, 0)
            return (r - g).max()

    assert reddest(right) < 20
    assert reddest(wrong) > 100


def test_of_classes_with_many_shows_both_ends():
    assert _size(pictures.of_classes(_classes(40), "t")) == _size(
        pictures.of_classes(_classes(1000), "t")
    )


def test_labels_may_be_anything():
    odd = "a $\\frac{1 and a very long name of a class $"
    pictures.of_images([_tile(odd, "cat"), _tile(odd, odd)], [_tile("cat", odd)], odd)
    pictures.of_classes([OfClass(odd, 1, 0.4, 0.0, (0.4, 0.4), 1.0, 1.0)], odd)
