from __future__ import annotations

import numpy as np
import pytest

from models.backbones import build
from service.engines.base import Engine
from service.engines.onnx_graph import OnnxEngine
from service.engines.reference import TorchEngine
from tests.service.engines.support import check_same, mixed_rows, random_bundle

# Name → width factor and image size.
SMALL = {
    "mcifarnet": (0.125, 12),
    "vgg16": (0.0625, 32),
    "resnet20": (0.25, 8),
    "resnet18": (0.0625, 32),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("form", ["paths", "priced"])
def test_engines_agree_on_mixed_batches_of_published_backbones(name: str, form: str) -> None:
    width, size = SMALL[name]
    bundle = random_bundle(build(name, 5, width=width, image_size=size), form)
    engines: list[Engine] = [TorchEngine(bundle, threads=1), OnnxEngine(bundle, threads=1)]
    rows = mixed_rows(bundle)
    wanted, result = (engine.run(*rows) for engine in engines)
    check_same(result, wanted)
    assert len(np.unique(result.widths, axis=0)) >= 4
    for part in (slice(3, 4), slice(2, 9)):
        check_same(*(engine.run(*(row[part] for row in rows)) for engine in engines))
