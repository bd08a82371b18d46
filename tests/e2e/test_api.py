"""The service does what its OpenAPI document says, as Schemathesis sees it.

For longer, with a service at hand, here with its own document as the only thing it knows:

    schemathesis --config-file tests/e2e/schemathesis.toml run \\
        http://localhost:8000/openapi.json --max-examples 2000 --seed 1
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import models
from benchmarks.fuzz.__main__ import MODEL
from benchmarks.fuzz.server import running

HERE = Path(__file__).parent


def test_service_does_what_its_openapi_document_says(tmp_path: Path) -> None:
    (tmp_path / MODEL).symlink_to(Path(models.__path__[0]).resolve() / "bundles" / MODEL)
    with running(tmp_path, RNP_THREADS="1") as server:
        run = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                f"--config-file={HERE / 'schemathesis.toml'}",
                "run",
                f"http://127.0.0.1:{server.port}/openapi.json",
                "--max-examples=30",
                "--no-color",
            ],
            cwd=HERE.parents[1],
            env=os.environ | {"PYTHONPATH": str(HERE.parents[1]), "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert server.process.poll() is None
    if run.returncode:
        pytest.fail(f"{run.stdout[-10_000:]}\n{run.stderr[-2000:]}", pytrace=False)
    assert " generated, " in run.stdout
