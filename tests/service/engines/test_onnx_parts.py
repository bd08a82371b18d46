from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.bundle import Bundle
from models.config import BackboneConfig, ConvConfig
from service.engines import onnx_parts
from service.engines.onnx_builder import path_graph
from service.engines.onnx_scope import MODEL
from tests.service.engines.support import random_bundle, random_images


def backbone(size: int, kernel: int, stride: int, padding: int, pool: tuple) -> BackboneConfig:
    first = ConvConfig("0", "n0", 3, 16, kernel=kernel, stride=stride, padding=padding, pool=pool)
    second = ConvConfig("1", "n1", 16, 12)
    return BackboneConfig("pooled", size, (first, second), (5,), ("head",))


def answers(
    bundle: Bundle, images: np.ndarray, width: int, scratch: Path
) -> tuple[np.ndarray, int]:
    """Logits at a width of the first layer, and the number of layers computed in pairs."""
    graph = path_graph(bundle, [width, 2])
    graph.write(scratch)
    session = ort.InferenceSession(str(scratch / MODEL))
    kinds = [node.op_type for node in graph.model.graph.node]
    return session.run(None, {"image": images})[0], kinds.count("Split")


@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(16, 3, 1, 1), (18, 3, 1, 0), (16, 5, 1, 2), (32, 7, 2, 3), (31, 7, 2, 3), (17, 3, 2, 0),
     (18, 3, 2, 0), (32, 1, 2, 0), (34, 5, 2, 1), (48, 3, 3, 1)],
)  # fmt: skip
@pytest.mark.parametrize("width", [1, 2])
def test_layers_computed_in_pairs_give_the_same(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    pool: tuple,
    width: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = backbone(size, kernel, stride, padding, pool)
    assert config.sizes()[0] % 2 == 0
    bundle = random_bundle(config, "paths")
    images = random_images(bundle.card.backbone, 3)
    monkeypatch.setattr(onnx_parts, "LANES", 16)
    paired, pairs = answers(bundle, images, width, tmp_path)
    monkeypatch.setattr(onnx_parts, "LANES", 0)
    plain, none = answers(bundle, images, width, tmp_path)
    assert (pairs, none) == (1, 0)
    np.testing.assert_allclose(paired, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "width"), [(15, 1), (16, 3)])
def test_layers_of_odd_maps_or_many_channels_are_not_computed_in_pairs(
    size: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_parts, "LANES", 16)
    bundle = random_bundle(backbone(size, 3, 1, 1, (3, 2, 1)), "paths")
    _, pairs = answers(bundle, random_images(bundle.card.backbone, 1), width, tmp_path)
    assert pairs == 0
