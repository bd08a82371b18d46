from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.load.generator import Plan
from benchmarks.load.messages import read_classification
from benchmarks.load.report import GeneratorCost
from benchmarks.peers_servers.start import PEERS, SERVERS
from tests.benchmarks.support import GIVEN_UP, write_images, write_narrow_bundle


def test_a_peer_is_measured_beside_ours_and_one_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_narrow_bundle(tmp_path / "bundles" / "narrow")
    flags = ["--data", write_images(tmp_path / "data"), "--bundle", bundle, "--quick"]
    flags += ["--cache", tmp_path / "cache", "--workers", 1, "--venvs", tmp_path]
    monkeypatch.setattr("sys.argv", ["peers", *map(str, flags), "--peers", "fastapi", "litserve"])
    assert peers.main() == 1
    *_, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert set(report["servers"]) == {"ours, budget 1", "ours, budget 0.25", "fastapi"}
    assert set(report["missing"]) == {"litserve"}
    assert "--setup" in report["missing"]["litserve"]
    for found in report["servers"].values():
        (level,) = found["at_level"]
        assert found["rate"][0] > 0
        assert level["offered"] == pytest.approx(0.7 * found["rate"][0], rel=0.3)
        assert level["errors"] == 0
    # The same network and the same decoding.
    assert report["servers"]["fastapi"]["same"] == [1]
    assert report["servers"]["ours, budget 0.25"]["same"][0] < 1


def test_request_given_up_is_counted_and_does_not_stretch_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "drive", lambda plan: GIVEN_UP)
    plan = Plan("nowhere", 1, [b""], read_classification)
    files = SimpleNamespace(contents=[b"", b""], labels=np.array([0, 1]))
    flags = SimpleNamespace(connections=2, seconds=2.0, rate=None)
    measured = peers.measure(plan, files, 0, flags, GeneratorCost())
    assert measured.full.answered == 0.5
    found = peers.Found()
    found.add(measured, measured.answers)
    peers.print_table({"fastapi": found}, None)
    # At saturation and at the rate.
    assert capsys.readouterr().out.splitlines()[-1].split(" | ")[-3] == "2"


def test_latencies_at_a_rate_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_narrow_bundle(tmp_path / "bundles" / "narrow")
    flags = ["--data", write_images(tmp_path / "data"), "--bundle", bundle, "--quick"]
    flags += ["--cache", tmp_path / "cache", "--workers", 1, "--rate", 40]
    monkeypatch.setattr("sys.argv", ["peers", *map(str, flags), "--peers"])
    assert peers.main() == 0
    out = capsys.readouterr().out
    assert "p99 ms at 40/s" in out
    for found in json.loads(out.splitlines()[-1])["servers"].values():
        assert found["at_level"][0]["offered"] == pytest.approx(40, rel=0.4)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.own])
def test_all_that_a_peer_needs_is_pinned(name: str) -> None:
    lines = (SERVERS / f"requirements-{name}.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    # The last two, which uvicorn takes where it finds them, so that all have them or none.
    assert {name, "onnxruntime", "numpy", "pillow", "httptools", "uvloop"} <= {
        line.partition("==")[0].lower() for line in pinned
    }
