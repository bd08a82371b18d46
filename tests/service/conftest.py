"""Fixtures of the service's tests; what they are made of is in `support`."""

from __future__ import annotations

import gc
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from models.card import Card
from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine, add_bundle, make_card, serve

# Triton is for Linux, where its tests fail without it.
collect_ignore_glob = (
    []
    if sys.platform == "linux" or importlib.util.find_spec("triton")
    else ["engines/test_triton_*.py"]
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for Unix sockets, whose paths may not be as long as those of `tmp_path` can be."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is in a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def card() -> Card:
    return make_card()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, card: Card) -> Path:
    directory = tmp_path_factory.mktemp("bundles")
    add_bundle(directory, card)
    return directory


@pytest.fixture(scope="session")
def settings(bundles: Path) -> Settings:
    return Settings(
        bundles=bundles,
        max_body_bytes=1_000_000,
        max_pixels=1_000_000,
        max_request_pixels=2_000_000,
        max_parts=4,
        max_queue=4,
    )


@pytest.fixture
def engine(card: Card) -> FakeEngine:
    return FakeEngine(card.table(), len(card.labels))


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, engine)


@pytest.fixture(scope="module")
def reader(settings: Settings, card: Card) -> Iterator[httpx.Client]:
    """A client of one service for all tests of a module that leave it as it is."""
    with serve(create_app(settings, FakeEngine(card.table(), len(card.labels)))) as client:
        yield client


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serve(app) as client:
        yield client
