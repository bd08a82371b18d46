from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from models import compute, config, storage
from models.bundle import Bundle
from models.card import CalibrationPoint, Card
from models.config import AgentConfig, BackboneConfig, ConvConfig
from models.preprocess import Preprocessing
from service.engines import onnx_agents, onnx_builder, onnx_parts, onnx_scope
from service.engines.onnx_cache import SUM, UNFINISHED_S, UNUSED_S, graph_file
from service.engines.onnx_scope import EXTERNAL_BYTES, MODEL, WEIGHTS, OnnxGraph, Scope

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
    """Counts how often it was asked to build; `last` gives what it built, while that is held."""

    last: weakref.ref[OnnxGraph]

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, bundle: Bundle) -> OnnxGraph:
        self.builds += 1
        scope = Scope()
        scope.constant(np.full(EXTERNAL_BYTES, ord(bundle.digest[0]), np.uint8), np.uint8)
        graph = scope.finish([], [])
        self.last = weakref.ref(graph)
        return graph


@pytest.fixture
def build() -> Builder:
    return Builder()


def contents(model: Path) -> tuple[bytes, bytes]:
    return model.read_bytes(), model.with_name(WEIGHTS).read_bytes()


def test_graph_file_second_time_is_read_not_built(tmp_path: Path, build: Builder) -> None:
    with graph_file(BUNDLE, "counted", build, tmp_path / "made") as first:
        assert contents(first)[1] == b"d" * EXTERNAL_BYTES
    with graph_file(BUNDLE, "counted", build, tmp_path / "made") as second:
        assert second == first
        assert second.exists()
    assert build.builds == 1


def test_graph_file_that_another_process_kept_meanwhile_stays(
    tmp_path: Path, build: Builder
) -> None:
    kept: list[int] = []

    def build_slower(bundle: Bundle) -> OnnxGraph:
        with graph_file(BUNDLE, "one", build, tmp_path) as other:
            kept.append(other.stat().st_ino)
        return build(bundle)

    with graph_file(BUNDLE, "one", build_slower, tmp_path) as path:
        assert [path.stat().st_ino] == kept


def test_graph_file_that_another_process_keeps_at_the_last_moment_stays(
    tmp_path: Path, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def late(change: Callable) -> Callable:
        def changed(*paths: object, **options: object) -> object:
            monkeypatch.undo()
            with graph_file(BUNDLE, "one", build, tmp_path) as other:
                kept.append(other.stat().st_ino)
            return change(*paths, **options)

        return changed

    # Whichever would touch the cache first.
    for module, name in ((os, "rename"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, late(getattr(module, name)))
    with graph_file(BUNDLE, "one", build, tmp_path) as path:
        assert [path.stat().st_ino] == kept


@pytest.mark.parametrize("cached", [True, False])
def test_graph_file_newly_built_is_no_longer_in_memory(
    tmp_path: Path, build: Builder, cached: bool
) -> None:
    with graph_file(BUNDLE, "one", build, tmp_path if cached else None):
        assert build.builds == 1
        assert build.last() is None


def test_graph_file_of_another_name_is_another(tmp_path: Path, build: Builder) -> None:
    with graph_file(BUNDLE, "one", build, tmp_path) as first:
        pass
    with graph_file(BUNDLE, "two", build, tmp_path) as second:
        assert first != second
    assert build.builds == 2


def test_graph_file_of_changed_bundle_is_built_anew(tmp_path: Path, build: Builder) -> None:
    with graph_file(BUNDLE, "counted", build, tmp_path) as first:
        pass
    with graph_file(
        dataclasses.replace(BUNDLE, digest="other"), "counted", build, tmp_path
    ) as second:
        assert contents(second)[1] == b"o" * EXTERNAL_BYTES
    assert first != second


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, SUM])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_graph_file_damaged_is_built_anew(
    tmp_path: Path, build: Builder, name: str, damage: str
) -> None:
    with graph_file(BUNDLE, "counted", build, tmp_path) as model:
        whole = contents(model)
    file = model.with_name(name)
    content = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
        case "truncate":
            file.write_bytes(content[:-1])
        case "empty":
            file.write_bytes(b"")
        case "remove":
            file.unlink()
    with graph_file(BUNDLE, "counted", build, tmp_path) as model:
        assert contents(model) == whole
    assert build.builds == 2
    with graph_file(BUNDLE, "counted", build, tmp_path):
        assert build.builds == 2


def test_graph_file_unwritable_cache_is_temporary_and_says_so(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with (
        caplog.at_level(logging.WARNING),
        graph_file(BUNDLE, "counted", build, in_the_way / "c") as model,
    ):
        assert contents(model)[1] == b"d" * EXTERNAL_BYTES
    assert not model.exists()
    assert build.builds == 1
    assert str(in_the_way) in caplog.text


def test_graph_file_without_cache_is_temporary(build: Builder) -> None:
    with graph_file(BUNDLE, "counted", build, None) as model:
        assert model.exists()
    assert not model.exists()


def test_graph_file_leaves_nothing_else_in_the_cache(tmp_path: Path, build: Builder) -> None:
    with graph_file(BUNDLE, "counted", build, tmp_path) as model:
        pass
    assert list(tmp_path.iterdir()) == [model.parent]
    assert {file.name for file in model.parent.iterdir()} == {MODEL, WEIGHTS, SUM}


@pytest.mark.parametrize(
    "module", [compute, config, storage, onnx_agents, onnx_builder, onnx_parts, onnx_scope]
)
def test_graph_file_of_other_code_is_built_anew(
    tmp_path: Path, build: Builder, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    with graph_file(BUNDLE, "counted", build, tmp_path) as first:
        pass
    read = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda each: read(each) + "#" * (each is module))
    with graph_file(BUNDLE, "counted", build, tmp_path) as second:
        assert second != first


def age(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_graph_file_that_is_kept_removes_what_was_long_unused(
    tmp_path: Path, build: Builder
) -> None:
    kept = {}
    for name in ("unused", "recent", "taken"):
        with graph_file(BUNDLE, name, build, tmp_path) as model:
            kept[name] = model
    age(kept["unused"].parent, UNUSED_S + 60)
    age(kept["recent"].parent, UNUSED_S - 60)
    age(kept["taken"].parent, UNUSED_S + 60)
    with kept["unused"].open("rb") as held, graph_file(BUNDLE, "taken", build, tmp_path):
        assert build.builds == 3
        with graph_file(BUNDLE, "new", build, tmp_path) as new:
            left = {kept["recent"].parent, kept["taken"].parent, new.parent}
        assert set(tmp_path.iterdir()) == left
        assert held.read()


def test_graph_file_that_is_kept_removes_what_a_killed_process_left(
    tmp_path: Path, build: Builder
) -> None:
    digits = "0123456789abcdef01234567"
    left, written = (tmp_path / f".paths-{digits}-{end}" for end in ("k1ll_d00", "b8s1ness"))
    others = [tmp_path / name for name in ("own", f"own-{digits}x", ".own", "tiles-GPU.json")]
    for directory in (left, written, *others):
        directory.mkdir()
        (directory / MODEL).touch()
        age(directory, 9 * UNUSED_S)
    age(left, UNFINISHED_S + 60)
    age(written, UNFINISHED_S - 60)
    with graph_file(BUNDLE, "new", build, tmp_path) as new:
        assert set(tmp_path.iterdir()) == {written, *others, new.parent}
