from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_kernels_compile_for_gpus_and_use_their_matrix_units(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.measure.compiled", "--networks", "mcifarnet"]
    command += ["--capabilities", "90"]
    # A process of its own, as this one interprets.
    variables = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    kernels = {row["kernel"] for row in rows if row["launches"]}
    assert kernels == {"conv_kernel", "decide_kernel"}
    for row in rows:
        if row["kernel"] == "conv_kernel":
            assert row["tensor_cores"] == row["launches"]
            # Of the end, which is small, it may not pay, on none of the paths.
            assert row["async_copies"] >= 0.75 * row["launches"]
