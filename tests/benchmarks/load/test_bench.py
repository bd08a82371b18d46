from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.load import bench
from tests.benchmarks.support import GIVEN_UP


def test_request_given_up_does_not_stretch_a_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "drive", lambda plan: GIVEN_UP)
    server = SimpleNamespace(host="nowhere", port=1)
    files = SimpleNamespace(contents=[b"", b""], labels=np.array([0, 1]))
    flags = SimpleNamespace(format="PNG", target_ms=50)
    _, found = bench.Bench(server, files, flags).saturate("", connections=2, seconds=2.0)
    assert found.answered == 0.5
