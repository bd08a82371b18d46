"""Tests of training/curves.py."""

import matplotlib as mpl
import pytest

from training import curves as module
from training.curves import picture

MACS = {"mcifarnet": 174_301_824, "vgg16": 313_000_000, "resnet18": 246_000_000}


def _report(backbone="mcifarnet", data="data/cifar10", **changes):
    accuracy = {"ours": 0.9, "cascade": 0.89, "uniform": 0.8, "random": 0.7, "shuffled": 0.75}
    row = {"budget": 0.4, "fraction": 0.39, "paths": 5, "accuracy": accuracy}
    macs = MACS[backbone]
    ours = {"bundle": "ours", "backbone": backbone, "full_macs": macs, "data": data, "rows": [row]}
    return {"ours": [ours], "rows": [row], "full": 0.92, "others": [], "static": [], **changes}


@pytest.mark.parametrize(
    ("backbone", "data", "shown"),
    [
        ("mcifarnet", "data/cifar10", True),
        ("vgg16", "cifar10", True),
        ("vgg16", "cifar100", False),
        ("vgg16", "data/pets", False),
        ("resnet18", "cifar10", False),
    ],
)
def test_picture_shows_published_points_of_the_same_network_and_data(
    backbone, data, shown, monkeypatch
):
    before = picture(_report(backbone, data))
    monkeypatch.setattr(module, "PUBLISHED", {})
    assert (picture(_report(backbone, data)) != before) == shown


def test_picture_shows_no_points_of_another_network(monkeypatch):
    before = picture(_report("vgg16"))
    monkeypatch.delitem(module.PUBLISHED, ("mcifarnet", 174))
    assert picture(_report("vgg16")) == before


def test_picture_shows_no_points_of_a_network_of_other_channels(monkeypatch):
    report = _report()
    report["ours"][0]["full_macs"] //= 4
    before = picture(report)
    monkeypatch.setattr(module, "PUBLISHED", {})
    assert picture(report) == before


def test_picture_another_kind_that_reached_no_budget_is_left_out():
    plain_network = {"budget": 1.0, "fraction": 1.0, "accuracy": 0.9}
    others = [{"form": "paper", "points": [plain_network]}]
    assert picture(_report(others=others)) == picture(_report())


def test_picture_shows_every_rival():
    plain = picture(_report())
    point = {"budget": 0.4, "fraction": 0.4, "accuracy": 0.8}
    others = [{"form": "paper", "points": [point, {**point, "fraction": 1.0}]}]
    static = [{"method": method, "fraction": 0.3, "accuracy": 0.7} for method in ("l1", "narrow")]
    pictures = [plain, picture(_report(others=others)), picture(_report(static=static))]
    pictures.append(picture(_report(static=static[:1])))
    assert len(set(pictures)) == 4


def test_picture_is_the_same_whatever_the_user_likes():
    plain = picture(_report())
    with mpl.rc_context({"savefig.dpi": 50, "lines.linewidth": 9, "axes.grid": True}):
        assert picture(_report()) == plain
