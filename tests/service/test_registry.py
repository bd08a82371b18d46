from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.bundle import BundleError, write_bundle
from service.budget import Budget
from service.errors import BudgetTooLow, CapTooLow
from service.metrics import Metrics
from service.registry import Limits, ServedModel, read_bundles, serve_bundle
from service.settings import Settings
from tests.service.support import FakeEngine, add_bundle, make_card


@pytest.fixture
def model(bundles: Path, settings: Settings, engine: FakeEngine):
    bundle = read_bundles(bundles)["tiny"]
    model = serve_bundle(bundle, engine, settings, Metrics(), Budget(0.5))
    yield model
    model.batcher.close()


def test_limits_budget_one_has_no_penalty(model: ServedModel) -> None:
    assert model.limits(1, 1) == Limits(1, 0.0, 1)


def test_limits_lower_budget_has_higher_penalty(model: ServedModel) -> None:
    assert model.limits(0.3, 1).penalty > model.limits(0.6, 1).penalty > 0


def test_limits_lowest_values_allowed(model: ServedModel) -> None:
    limits = model.limits(model.min_fraction, model.min_cap)
    assert (limits.budget, limits.cap) == (model.min_fraction, model.min_cap)


def test_limits_without_a_cap_have_none(model: ServedModel) -> None:
    assert model.limits(0.5, None) == Limits(0.5, model.limits(0.5, 1).penalty, None)


def test_limits_budget_out_of_reach_refused_with_lowest(model: ServedModel) -> None:
    with pytest.raises(BudgetTooLow, match=r"0\.1: tiny can reach no less than 0\.2"):
        model.limits(0.1, 1)


def test_limits_cap_out_of_reach_refused_with_lowest(model: ServedModel) -> None:
    with pytest.raises(CapTooLow, match=f"takes {model.min_cap}"):
        model.limits(0.5, 0.01)


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
