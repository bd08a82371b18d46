"""The README's first request, as it stands there, has the answer that stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.support import serve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_first_request_is_answered_as_printed(tmp_path: Path) -> None:
    image, path = re.findall(r"curl --data-binary @(\S+) 'localhost:8000(\S+)'", README)[0]
    printed = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0].replace(", …", ""))
    with serve(create_app(Settings(cache_dir=tmp_path, threads=1))) as client:
        answer = client.post(path, content=(ROOT / image).read_bytes()).json()
    assert answer.keys() == printed.keys()
    told = printed["predictions"][0]
    found = answer["predictions"][0]
    assert found["probability"] == pytest.approx(told.pop("probability"), abs=1e-3)
    assert found.items() >= told.items()
    assert answer["compute"].pop("fraction") == pytest.approx(
        printed["compute"].pop("fraction"), abs=1e-3
    )
    for name in ("model", "budget", "budget_by", "cap", "compute"):
        assert answer[name] == printed[name]
    assert answer["timing_ms"].keys() == printed["timing_ms"].keys()
