from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.card import BundleError
from service.app import create_app
from service.registry import ServedModel
from service.settings import Settings, SettingsError
from service.state import Service
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


@pytest.mark.parametrize(
    ("variable", "value", "reached", "expected"),
    [
        ("RNP_MAX_BATCH", "5", lambda model, _: model.batcher._max_batch, 5),
        ("RNP_MAX_BATCH", "5", lambda model, _: model.planner._max_batch, 5),
        ("RNP_MAX_WAIT_MS", "250", lambda model, _: model.batcher._max_wait_s, 0.25),
        ("RNP_MAX_QUEUE", "50", lambda model, _: model.batcher._max_queue, 50),
        ("RNP_HOLD_BUDGETS", "false", lambda model, _: model.planner.correction._on, False),
        ("RNP_DECODE_THREADS", "3", lambda _, service: len(service.decoders._threads), 3),
    ],
)
def test_create_app_setting_reaches_what_it_is_of(
    monkeypatch: pytest.MonkeyPatch,
    bundles: Path,
    engine: FakeEngine,
    variable: str,
    value: str,
    reached: Callable[[ServedModel, Service], object],
    expected: object,
) -> None:
    monkeypatch.setenv("RNP_BUNDLES", str(bundles))
    monkeypatch.setenv(variable, value)
    with serve(app := create_app(engine=engine)):
        service = app.state.service
        assert reached(service.model(None), service) == expected


def test_create_app_torch_is_the_engine_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, bundles: Path
) -> None:
    monkeypatch.setenv("RNP_BUNDLES", str(bundles))
    monkeypatch.setenv("RNP_ENGINE", "torch")
    with serve(create_app()) as client:
        assert client.get("/models").json()["models"][0]["engine"] == "torch"
        assert client.post("/classify", content=png()).status_code == 200


def test_create_app_unknown_default_model_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="RNP_MODEL is 'big': choose one of tiny"):
        create_app(settings.model_copy(update={"model": "big"}))


def test_create_app_no_bundle_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        create_app(settings.model_copy(update={"bundles": tmp_path}))
