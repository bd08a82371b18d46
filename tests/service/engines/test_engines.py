from __future__ import annotations

import numpy as np
import pytest

from models.backbones import build
from service.engines import warm_up
from service.engines.base import Result
from service.engines.onnx_graph import OnnxEngine
from tests.service.engines.support import random_bundle


class RecordingEngine(OnnxEngine):
    """Keeps what it answered."""

    def run(self, images: np.ndarray, penalty: np.ndarray, cap: np.ndarray) -> Result:
        self.result = super().run(images, penalty, cap)
        return self.result


@pytest.mark.parametrize("form", ["paths", "priced"])
def test_warm_up_runs_the_plain_network_and_every_path(form: str) -> None:
    bundle = random_bundle(build("mcifarnet", 5, width=0.125, image_size=12), form)
    engine = RecordingEngine(bundle, threads=1)
    warm_up(engine, bundle)
    whole, table = (4,) * bundle.card.backbone.n_layers, bundle.card.table()
    wanted = [whole, *(bundle.card.agent.paths or [whole])]
    assert engine.result.widths.tolist() == [list(path) for path in wanted]
    assert engine.result.macs[0] == table.full
    if form == "paths":
        first, *others = table.looks
        assert engine.result.macs[1:].tolist() == [first, *(first + macs for macs in others)]
