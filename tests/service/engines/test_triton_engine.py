from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones import build
from models.bundle import Bundle
from models.config import BackboneConfig, Sees, Views
from service.engines import create_engine, triton_engine, triton_network
from service.engines.base import Caps, Floats, Result
from service.engines.reference import TorchEngine
from service.engines.triton_engine import (
    BATCHES,
    MOST_VALUES,
    CannotRun,
    TritonEngine,
    check,
    check_answers,
)
from service.engines.triton_tuning import Tuner
from tests.service.engines.support import (
    CHAIN,
    LINEARS,
    PADDED,
    RESIDUAL,
    THREE_GROUPS,
    check_same,
    mixed_rows,
    random_bundle,
    random_images,
)
from tests.service.engines.triton_support import DEVICE, TILE

ROWS = 9


@pytest.fixture(autouse=True)
def spoiled_memory() -> Iterator[None]:
    """New memory is full of NaN, so that whatever reads it before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def engine_of(bundle: Bundle, *batches: int, dtype: torch.dtype = torch.float32) -> TritonEngine:
    tuner = Tuner(default=TILE)
    return TritonEngine(bundle, device=DEVICE, dtype=dtype, tuner=tuner, batches=batches)


@pytest.mark.parametrize(
    ("backbone", "looks", "sees", "views"),
    [
        (CHAIN, 0, "maps", "image"),
        (CHAIN, 1, "maps", "both"),
        (CHAIN, 0, "answer", "both"),
        (RESIDUAL, 0, "maps", "both"),
        (PADDED, 0, "maps", "both"),
        (LINEARS, 0, "maps", "both"),
        (THREE_GROUPS, 0, "maps", "both"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_engine_mixed_rows_agree_with_reference(
    backbone: BackboneConfig, looks: int, sees: Sees, views: Views
) -> None:
    bundle = random_bundle(backbone, "paths", looks=looks, sees=sees, views=views)
    rows = tuple(part[: 3 * ROWS : 3] for part in mixed_rows(bundle))
    wanted = TorchEngine(bundle, threads=1).run(*rows)
    check_same(engine_of(bundle, ROWS).run(*rows), wanted)
    assert len(np.unique(wanted.macs)) >= 4


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [("mcifarnet", 0.125, 12), ("vgg16", 0.0625, 32), ("resnet18", 0.0625, 32)],
)
def test_engine_published_backbones_agree_with_reference(
    name: str, width: float, size: int
) -> None:
    bundle = random_bundle(build(name, 5, width=width, image_size=size), "paths")
    rows = tuple(part[:3] for part in mixed_rows(bundle))
    check_same(engine_of(bundle, 3).run(*rows), TorchEngine(bundle, threads=1).run(*rows))


def test_engine_splits_and_fills_batches() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    rows = tuple(part[:6] for part in mixed_rows(bundle))
    engine, reference = engine_of(bundle, 1, 4), TorchEngine(bundle, threads=1)
    # 6 are 4 and 2, and the 2 are filled up to 4.
    for part in (slice(0, 6), slice(2, 3), slice(3, 5), slice(0, 0)):
        few = [row[part] for row in rows]
        check_same(engine.run(*few), reference.run(*few))


def test_engine_bfloat16_is_near_the_reference() -> None:
    bundle = random_bundle(CHAIN, "paths")
    images, _, cap = (part[:ROWS] for part in mixed_rows(bundle))
    # At price 1e3 none goes on, and at −1e3 all as far as they may: noise decides nothing.
    penalty = np.float32([0, 1e3, -1e3] * 3)
    rows = images, penalty, np.maximum(cap, 1)
    wanted = TorchEngine(bundle, threads=1).run(*rows)
    result = engine_of(bundle, ROWS, dtype=torch.bfloat16).run(*rows)
    np.testing.assert_array_equal(result.widths, wanted.widths)
    np.testing.assert_array_equal(result.macs, wanted.macs)
    largest = np.abs(wanted.logits).max()
    np.testing.assert_allclose(result.logits, wanted.logits, atol=0.03 * largest, rtol=0)


def test_engine_logits_that_are_no_numbers_stay_with_their_image() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    engine, images = engine_of(bundle, 1), random_images(THREE_GROUPS, 1)
    with np.errstate(all="ignore"):  # of the interpreter: sums of the last maps overflow
        broken = engine.run(images * 1e37, np.float32([1]), np.array([math.inf]))
    assert np.isnan(broken.logits).all()
    plain = images, np.zeros(1, np.float32), np.ones(1)
    check_same(engine.run(*plain), TorchEngine(bundle, threads=1).run(*plain))


def test_check_answers_refuses_an_engine_that_computes_something_else() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    check_answers(engine_of(bundle, 8, dtype=torch.bfloat16), bundle, [8])
    with pytest.raises(CannotRun, match="its answers on noise differ from the reference"):
        check_answers(engine_of(bundle, 8), random_bundle(THREE_GROUPS, "paths", seed=1), [8])


class Spoilt(TorchEngine):
    """The reference, but for the last answer in batches of one size."""

    def __init__(self, bundle: Bundle, size: int) -> None:
        super().__init__(bundle, threads=1)
        self._size = size

    def run(self, images: Floats, penalty: Floats, cap: Caps) -> Result:
        result = super().run(images, penalty, cap)
        if len(images) == self._size:
            result.logits[-1] *= -1
        return result


def test_check_answers_asks_for_batches_of_every_size() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    check_answers(Spoilt(bundle, 0), bundle)
    for size in BATCHES:
        with pytest.raises(CannotRun, match=f"in batches of {size}, logits by"):
            check_answers(Spoilt(bundle, size), bundle)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU A/1")


@pytest.mark.usefixtures("gpu")
def test_check_refuses_maps_that_the_kernels_cannot_count() -> None:
    bundle = random_bundle(THREE_GROUPS, "paths")
    # Its last maps, of 12 channels, are as large as the image.
    side = int((MOST_VALUES / max(BATCHES) / 12) ** 0.5)
    for size, fits in ((side, True), (side + 1, False)):
        backbone = dataclasses.replace(THREE_GROUPS, image_size=size)
        large = dataclasses.replace(
            bundle, card=dataclasses.replace(bundle.card, backbone=backbone)
        )
        if fits:
            check(large)
            continue
        with pytest.raises(CannotRun, match="values in a batch of 32, and the kernels reach 2147"):
            check(large)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("module", ["triton_kernels", "triton_layers", "triton_tuning"])
def test_tiles_of_other_code_are_found_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    first = triton_engine._tiles_file(tmp_path)
    assert first is not None
    assert first.name.startswith("tiles-GPU-A-1-")
    assert triton_engine._tiles_file(tmp_path) == first
    monkeypatch.setattr(triton_engine, module, triton_network)
    assert triton_engine._tiles_file(tmp_path) != first


def test_create_engine_auto_without_gpu_is_onnx_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    engine = create_engine(random_bundle(CHAIN, "paths"), "auto", threads=1, cache_dir=tmp_path)
    assert engine.name == "onnx"
    assert not caplog.records


@pytest.mark.parametrize("form", ["paths", "priced"])
def test_create_engine_triton_that_cannot_run_is_torch_and_says_why(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available() and form == "paths":
        pytest.skip("there is a GPU")
    bundle = random_bundle(CHAIN, form)
    engine = create_engine(bundle, "triton", threads=1, cache_dir=tmp_path)
    assert engine.name == "torch"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    why = (
        "the agent of chain decides layer by layer"
        if torch.cuda.is_available()
        else "there is no CUDA GPU that torch can use"
    )
    assert record.getMessage().startswith(f"engine 'triton' cannot run chain: {why}")
    assert record.getMessage().endswith("; 'torch' runs instead")
