"""Fills the caches of Triton and of torch.compile, for `benchmarks.gpu_check`.

TRITON_INTERPRET=0 python -m benchmarks.measure.gpu_compile NETWORK TILE|default|rival-BATCH
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.measure.gpu_subjects import NETWORKS, bundle_of, rivals
from benchmarks.measure.work import noise

RIVAL = "rival-"


def compile_all(flags: argparse.Namespace) -> None:
    """Fill the caches of Triton and of torch.compile by as many processes as there are cores.

    What cannot be compiled is found again, and told, by the steps that follow.
    """
    from service.engines.triton_tuning import CANDIDATES

    tiles = ["default", *map(str, range(len(CANDIDATES)))]
    parts = [(name, tile) for name in flags.networks for tile in tiles]
    if "compiled" in flags.rivals:
        # First, as they take longest.
        batches = [f"{RIVAL}{batch}" for batch in flags.batches]
        parts = [(name, batch) for name in flags.networks for batch in batches] + parts

    def run(part: tuple[str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.measure.gpu_compile", *part]
        subprocess.run(command, check=False)

    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, parts))
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Compile a network's kernels with one of the tiles, or a rival for one batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("what", help=f"number of a tile, default, or {RIVAL}BATCH")
    flags = parser.parse_args()
    import torch

    from service.engines.triton_engine import TritonEngine
    from service.engines.triton_tuning import CANDIDATES, Tuner

    bundle, what = bundle_of(flags.network), flags.what
    if what.startswith(RIVAL):
        images = noise(bundle, int(what.removeprefix(RIVAL)))
        only = argparse.Namespace(rehearse=False, rivals=["compiled"])
        rivals(only, bundle, images)["compiled"]()
    elif what == "default":
        # float32 is not tuned.
        TritonEngine(bundle, dtype=torch.float32, tuner=Tuner(), batches=(1,))
        TritonEngine(bundle, tuner=Tuner(), batches=(1,))
    else:
        TritonEngine(bundle, tuner=Tuner(default=CANDIDATES[int(what)]), batches=(1,))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
