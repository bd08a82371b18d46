from __future__ import annotations

from pathlib import Path

import pytest

from models.card import BundleError
from service.app import create_app
from service.settings import Settings, SettingsError
from tests.service.support import FakeEngine, png, serve


def test_create_app_twice_share_nothing(settings: Settings, engine: FakeEngine) -> None:
    with (
        serve(create_app(settings, engine)) as first,
        serve(create_app(settings, engine)) as second,
    ):
        first.put("/budget", json={"mode": "fixed", "budget": 0.9})
        first.post("/classify", content=png())
        assert second.get("/budget").json()["budget"] == 0.5
        assert 'rnp_images_total{model="tiny"} 1.0' in first.get("/metrics").text
        assert 'rnp_images_total{model="tiny"} 0.0' in second.get("/metrics").text


def test_create_app_no_settings_reads_the_environment(
    monkeypatch: pytest.MonkeyPatch, bundles: Path, engine: FakeEngine
) -> None:
    monkeypatch.setenv("RNP_BUNDLES", str(bundles))
    monkeypatch.setenv("RNP_BUDGET", "0.8")
    with serve(create_app(engine=engine)) as client:
        assert client.get("/budget").json()["budget"] == 0.8


def test_create_app_unknown_default_model_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="RNP_MODEL is 'big': choose one of tiny"):
        create_app(settings.model_copy(update={"model": "big"}))


def test_create_app_no_bundle_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        create_app(settings.model_copy(update={"bundles": tmp_path}))
