from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.budget import Budget, Fixed
from service.metrics import Metrics
from service.registry import ServedModel, read_bundles, serve_bundle
from service.settings import Settings
from tests.service.support import FakeEngine


@pytest.fixture
def model(bundles: Path, settings: Settings, engine: FakeEngine) -> Iterator[ServedModel]:
    model = serve_bundle(
        read_bundles(bundles)["tiny"], engine, settings, Metrics(), Budget(Fixed(0.5))
    )
    yield model
    model.batcher.close()
