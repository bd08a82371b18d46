from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.bundle import write_bundle
from models.card import BundleError
from service.budget import Budget, Fixed
from service.errors import BudgetTooLow, CapTooLow
from service.metrics import Metrics
from service.registry import ServedModel, read_bundles, serve_bundle
from service.settings import Settings
from tests.service.support import FakeEngine, add_bundle, make_card


@pytest.fixture
def model(bundles: Path, settings: Settings, engine: FakeEngine):
    model = serve_bundle(
        read_bundles(bundles)["tiny"], engine, settings, Metrics(), Budget(Fixed(0.5))
    )
    yield model
    model.batcher.close()


def test_check_lowest_values_allowed(model: ServedModel) -> None:
    model.check(model.card.min_fraction, model.card.min_cap)
    model.check(None, None)


def test_check_budget_out_of_reach_refused_with_lowest(model: ServedModel) -> None:
    with pytest.raises(BudgetTooLow, match=r"0\.1: tiny can reach no less than 0\.2"):
        model.check(0.1, 1)


def test_check_cap_out_of_reach_refused_with_lowest(model: ServedModel) -> None:
    with pytest.raises(CapTooLow, match=f"takes {model.card.min_cap}"):
        model.check(0.5, 0.01)


def test_read_bundles_several_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        add_bundle(tmp_path, make_card(name))
    (tmp_path / ".scratch").mkdir()
    (tmp_path / "notes").mkdir()
    assert list(read_bundles(tmp_path)) == ["a", "b"]


def test_read_bundles_only_those_asked_for(tmp_path: Path) -> None:
    for name in ("c", "b", "a"):
        add_bundle(tmp_path, make_card(name))
    add_bundle(tmp_path, make_card("b"), "b-2")
    assert list(read_bundles(tmp_path, ["c", "b-2"])) == ["c", "b"]
    for child, words in {"d": "cannot be read", "../a": "must be the plain name"}.items():
        with pytest.raises(BundleError, match=words):
            read_bundles(tmp_path, ["a", child])


@pytest.mark.parametrize("name", ["", "missing"])
def test_read_bundles_none_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        read_bundles(tmp_path / name)


def test_read_bundles_same_name_twice_refused(tmp_path: Path) -> None:
    card = make_card()
    add_bundle(tmp_path, card)
    bundle = read_bundles(tmp_path)["tiny"]
    write_bundle(tmp_path / "copy", dataclasses.replace(card, files={}), bundle.tensors)
    with pytest.raises(BundleError, match="both named tiny"):
        read_bundles(tmp_path)
