from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import SHIPPED, Settings, SettingsError, load_settings


def test_load_settings_empty_environment_takes_defaults() -> None:
    settings = load_settings()
    assert (settings.port, settings.engine, settings.model) == (8000, "auto", None)
    assert settings.bundles.parts[-2:] == ("models", "bundles")
    assert settings.threads >= 1


def test_tests_touch_nothing_of_whoever_runs_them() -> None:
    assert load_settings().cache_dir.is_relative_to(tempfile.gettempdir())


def test_load_settings_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNP_MAX_QUEUE", "77")
    assert load_settings().max_queue == 77


@pytest.mark.parametrize(("workers", "threads", "in_batch"), [("1", 2, False), ("2", 1, True)])
def test_load_settings_decoding_is_by_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, workers: str, threads: int, in_batch: bool
) -> None:
    monkeypatch.setenv("RNP_WORKERS", workers)
    settings = load_settings()
    assert (settings.decode_threads, settings.decode_in_batch) == (threads, in_batch)


@pytest.mark.parametrize("name", ["load", "cors_origins"])
@pytest.mark.parametrize(
    ("value", "listed"),
    [("", ()), (",", ()), ("a", ("a",)), (" a, b-2 ,,c,", ("a", "b-2", "c"))],
)
def test_load_settings_lists_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, listed: tuple[str, ...]
) -> None:
    monkeypatch.setenv(f"RNP_{name.upper()}", value)
    assert getattr(load_settings(), name) == listed


@pytest.mark.parametrize("value", ["*", "10.1.2.3", "10.0.0.0/8, ::1"])
def test_load_settings_proxies_are_addresses_or_networks(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RNP_TRUSTED_PROXIES", value)
    assert load_settings().trusted_proxies == tuple(value.split(", "))


@pytest.mark.parametrize("value", ["proxy.example", "10.0.0.1/8", "*,10.0.0.1", "10.0.0.1,x"])
def test_load_settings_a_proxy_that_would_never_match_is_an_error(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RNP_TRUSTED_PROXIES", value)
    with pytest.raises(SettingsError, match=r"RNP_TRUSTED_PROXIES .* networks such as 10\.0\.0\.0"):
        load_settings()


def test_load_settings_of_shipped_bundles_the_small_ones_and_the_default_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = ("cifar10-mcifarnet", "imagenette-resnet18")
    assert load_settings().load == small
    monkeypatch.setenv("RNP_MODEL", "cifar10-vgg16")
    assert set(load_settings().load) == {*small, "cifar10-vgg16"}
    monkeypatch.chdir(SHIPPED.parents[1])
    monkeypatch.setenv("RNP_BUNDLES", "models/bundles")
    assert set(load_settings().load) == {*small, "cifar10-vgg16"}
    monkeypatch.setenv("RNP_BUNDLES", str(tmp_path))
    assert load_settings().load == ()


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("RNP_PROT", "1", "RNP_PROT is no setting: did you mean RNP_PORT"),
        ("rnp_prot", "1", "rnp_prot is no setting: did you mean RNP_PORT"),
        ("RNP_ZZZZZZZZ", "1", "RNP_ZZZZZZZZ is no setting: did you mean RNP_HOST, "),
        ("RNP_SERVICE_HOST", "10.0.0.1", "RNP_SERVICE_HOST is no setting: .*enableServiceLinks"),
        ("RNP_PORT_80_TCP_ADDR", "10.0.0.1", "RNP_PORT_80_TCP_ADDR is .*enableServiceLinks"),
        ("RNP_PORT", "abc", "RNP_PORT is 'abc': input should be a valid integer"),
        ("RNP_BUDGET", "0", "RNP_BUDGET is '0': input should be greater than 0"),
        ("RNP_ENGINE", "gpu", "RNP_ENGINE is 'gpu': input should be 'auto', 'onnx', 'torch' or "),
        ("RNP_RATE_PER_S", "0", "RNP_RATE_PER_S is '0': input should be greater than 0"),
        ("RNP_RATE_PER_S", "inf", "RNP_RATE_PER_S is 'inf': input should be a finite number"),
        ("RNP_MAX_PARTS", "500", "RNP_MAX_PARTS 500 is above RNP_MAX_QUEUE 256"),
        ("RNP_CEILING", "0.05", "RNP_FLOOR 0.1 is above RNP_CEILING 0.05"),
        ("RNP_MAX_PIXELS", "200000000", "is above RNP_MAX_REQUEST_PIXELS 120000000"),
    ],
)
def test_load_settings_bad_variable_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=sentence):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
