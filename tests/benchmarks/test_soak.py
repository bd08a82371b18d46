from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.load import chaos
from benchmarks.load.outcome import COLUMNS, Outcome
from tests.benchmarks.support import GIVEN_UP, write_images, write_narrow_bundle

SECONDS = 100


def answered(per_second: int) -> Outcome:
    done = np.arange(SECONDS * per_second) / per_second
    columns = {name: np.zeros(len(done)) for name in COLUMNS}
    return Outcome(columns | {"done": done, "status": np.full(len(done), 200.0)}, 0.0, 0.0)


@pytest.mark.parametrize(("leak_mb", "good"), [(0.0, True), (2.0, False)])
def test_memory_that_grows_with_requests_is_bad(leak_mb: float, good: bool) -> None:
    at = np.arange(1.0, SECONDS)
    # It also grows at first, which is no leak, and goes up and down.
    warm = 50e6 * np.minimum(at / 20, 1)
    size = 200e6 + warm + leak_mb * 1e6 * at / 10 + 1e5 * np.sin(at)
    verdict = soak.memory(answered(1000), at, size, most_mb=0.5)
    assert verdict.good == good
    assert verdict.values["slope_mb_per_10k"] == pytest.approx(leak_mb, abs=0.1)


def test_request_given_up_does_not_stretch_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SimpleNamespace(host="nowhere", port=1)
    monkeypatch.setattr(soak, "service", lambda *_, **__: contextlib.nullcontext(server))
    monkeypatch.setattr(soak, "drive", lambda plan: GIVEN_UP)
    files = SimpleNamespace(contents=[b"", b""])
    assert soak.measure_rate(Path("none"), files, seconds=2.0, workers=1) == 0.5


def test_short_soak_and_chaos_of_a_real_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_narrow_bundle(tmp_path / "bundles" / "narrow")
    flags = ["--data", write_images(tmp_path / "data"), "--bundle", bundle, "--saturation-s", 1]
    flags += ["--level", 0.2, "--cache", tmp_path / "cache"]

    def run(*more: object) -> dict[str, dict[str, object]]:
        monkeypatch.setattr("sys.argv", ["soak", *map(str, (*flags, *more))])
        code = soak.main()
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == (not report["good"])
        return {verdict["item"]: verdict for verdict in report["verdicts"]}

    soaked = run("--minutes", 0.05)
    assert soaked["answers"]["good"]
    assert soaked["memory"]["values"]["last_mb"] > 50  # type: ignore[index]
    monkeypatch.setattr(chaos, "RELOADS", 3)
    found = run("--chaos", "--items", "kill", "stop", "reload", "bundle", "--seconds", 9)
    assert found["kill -9"]["good"]
    assert found["kill -9"]["values"]["lost"] > 0  # type: ignore[index]
    assert found["SIGTERM"]["good"]
    assert found["reloads"]["good"]
    assert found["corrupted bundle"]["good"]


def test_a_bundle_that_is_whole_is_no_verdict_of_a_corrupted_one(tmp_path: Path) -> None:
    bundle = write_narrow_bundle(tmp_path / "narrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "PATIENCE_S", 3.0)
        good, _ = chaos._start_broken(bundle, "model.safetensors", lambda content: content)
    assert not good
