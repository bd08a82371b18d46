from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from models.bundle import Bundle, CalibrationPoint, Card
from models.config import AgentConfig, BackboneConfig, ConvConfig
from models.preprocess import Preprocessing
from service.engines.onnx_cache import cached_graph

BACKBONE = BackboneConfig("tiny", 4, (ConvConfig("c", "n", 3, 4),), (2,), ("l",))
CARD = Card(
    name="tiny",
    labels=("a", "b"),
    backbone=BACKBONE,
    agent=AgentConfig(),
    preprocessing=Preprocessing(4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    calibration=(CalibrationPoint(1.0, 0.2, 0.5),),
)
BUNDLE = Bundle(CARD, {}, Path("tiny"), "digest")


class Builder:
    """Counts how often it was asked to build."""

    __name__ = "counted"

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, bundle: Bundle) -> onnx.ModelProto:
        self.builds += 1
        content = np.frombuffer(bundle.digest.encode(), np.uint8)
        graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(content, "digest")])
        return helper.make_model(graph)


@pytest.fixture
def build() -> Builder:
    return Builder()


def contents(graph: Path | bytes) -> bytes:
    return graph if isinstance(graph, bytes) else graph.read_bytes()


def test_cached_graph_second_time_is_read_not_built(tmp_path: Path, build: Builder) -> None:
    first = cached_graph(BUNDLE, build, tmp_path / "made")
    assert cached_graph(BUNDLE, build, tmp_path / "made") == first
    assert build.builds == 1
    assert contents(first) == Builder()(BUNDLE).SerializeToString()


def test_cached_graph_of_changed_bundle_is_built_anew(tmp_path: Path, build: Builder) -> None:
    first = cached_graph(BUNDLE, build, tmp_path)
    second = cached_graph(dataclasses.replace(BUNDLE, digest="other"), build, tmp_path)
    assert first != second
    assert b"other" in contents(second)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no sum", "binary sum"])
def test_cached_graph_damaged_is_built_anew(tmp_path: Path, build: Builder, damage: str) -> None:
    path = cached_graph(BUNDLE, build, tmp_path)
    assert isinstance(path, Path)
    whole = path.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    match damage:
        case "flip" | "truncate" | "empty":
            path.write_bytes({"flip": flipped, "truncate": whole[:-1], "empty": b""}[damage])
        case "no sum":
            path.with_suffix(".sha256").unlink()
        case "binary sum":
            path.with_suffix(".sha256").write_bytes(b"\xff")
    assert contents(cached_graph(BUNDLE, build, tmp_path)) == whole
    assert build.builds == 2
    assert path.read_bytes() == whole


def test_cached_graph_unwritable_directory_builds_in_memory_and_says_so(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with caplog.at_level(logging.WARNING):
        graph = cached_graph(BUNDLE, build, in_the_way / "cache")
    assert isinstance(graph, bytes)
    assert str(in_the_way) in caplog.text


def test_cached_graph_without_directory_writes_nothing(build: Builder) -> None:
    assert isinstance(cached_graph(BUNDLE, build, None), bytes)


def test_cached_graph_leaves_no_scratch_files(tmp_path: Path, build: Builder) -> None:
    path = cached_graph(BUNDLE, build, tmp_path)
    assert isinstance(path, Path)
    assert sorted(tmp_path.iterdir()) == [path, path.with_suffix(".sha256")]
