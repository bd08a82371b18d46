"""Threads of the ONNX engine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from service.engines.onnx_graph import OnnxEngine
from tests.service.engines.support import (
    CHAIN,
    FORMS,
    RESIDUAL,
    check_same,
    mixed_rows,
    random_bundle,
)


@pytest.mark.parametrize("form", FORMS)
def test_engines_on_different_numbers_of_threads_give_the_same_in_one_process(form: str) -> None:
    bundle = random_bundle(RESIDUAL, form)
    rows = mixed_rows(bundle)
    wanted, *others = [OnnxEngine(bundle, threads=n).run(*rows) for n in (1, 2, 3)]
    assert len(np.unique(wanted.widths, axis=0)) >= 3
    for result in others:
        check_same(result, wanted)


def running() -> set[str]:
    """Threads of this process."""
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists threads so")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_engine_of_whole_paths_makes_no_more_threads_than_it_is_given(threads: int) -> None:
    bundle, before = random_bundle(CHAIN, "paths"), running()
    engine = OnnxEngine(bundle, threads=threads)
    engine.run(*mixed_rows(bundle))
    # The caller's own is one of them.
    assert len(running() - before) == threads - 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux times threads so")
def test_engine_threads_without_work_soon_sleep() -> None:
    bundle, before = random_bundle(RESIDUAL, "paths"), running()
    engine, rows = OnnxEngine(bundle, threads=2), mixed_rows(bundle)
    (worker,) = running() - before

    def computed_s() -> float:
        nanoseconds, *_ = Path(f"/proc/self/task/{worker}/schedstat").read_text().split()
        return int(nanoseconds) / 1e9

    awake = []
    for _ in range(3):
        engine.run(*rows)
        start = computed_s()
        time.sleep(0.06)
        awake.append(computed_s() - start)
    # ONNX Runtime's own would be 10 to 40 ms, by the processor, each time; others can only add.
    assert min(awake) < 0.005
    assert computed_s() > 0
