from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from service.engines import triton_tuning
from service.engines.triton_engine import TritonEngine
from service.engines.triton_network import TritonNetwork
from service.engines.triton_tuning import CANDIDATES, Tuner
from tests.service.engines.support import THREE_GROUPS, mixed_rows, random_bundle
from tests.service.engines.triton_support import DEVICE, TILE


def test_network_does_not_keep_the_bundle_in_memory() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    network = TritonNetwork(bundle, torch.device(DEVICE), torch.bfloat16, Tuner(default=TILE))
    weights = [weakref.ref(value) for name, value in bundle.tensors.items() if "weight" in name]
    del bundle
    gc.collect()
    assert [weight() for weight in weights if weight() is not None] == []
    assert network.config == THREE_GROUPS


# Where no image was run maps hold anything.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_network_makes_nothing_within_the_trials_that_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = []

    def timer(call: Callable[[], object]) -> float:
        call()  # warms up
        with monkeypatch.context() as patch:
            patch.setattr(torch, "full_like", lambda *_: pytest.fail("memory is made in a trial"))
            call()
        timed.append(call)
        return 1.0

    monkeypatch.setattr(triton_tuning, "CANDIDATES", CANDIDATES[:1])
    bundle = random_bundle(THREE_GROUPS, "paths")
    engine = TritonEngine(
        bundle, device=DEVICE, dtype=torch.float32, tuner=Tuner(timer=timer), batches=(1,)
    )
    engine.run(*(part[:1] for part in mixed_rows(bundle)))
    assert timed
