from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from models.compute import cap_macs
from service.engines import base, onnx_scope
from service.engines.base import code_digest, every_way, forced, is_plain, plans
from service.engines.reference import TorchEngine
from tests.service.engines.support import THREE_GROUPS, random_bundle, random_images


def test_is_plain_needs_both_no_penalty_and_room_for_the_whole() -> None:
    penalty = np.float32([0, 0, 0, 0, 1e-9, -1])
    cap = np.array([1, math.inf, 0.999, 0, 1, 2])
    assert is_plain(penalty, cap).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("form", ["paths", "priced"])
def test_forced_rows_spend_each_plan_whatever_images_show(form: str) -> None:
    bundle = random_bundle(THREE_GROUPS, form)
    macs = np.repeat(plans(bundle.card.table()), 4)
    images = random_images(bundle.card.backbone, len(macs))
    result = TorchEngine(bundle, threads=1).run(images, *forced(macs, bundle.card.table()))
    assert result.macs.tolist() == macs.tolist()


def test_every_way_is_plain_once_and_then_each_plan() -> None:
    table = random_bundle(THREE_GROUPS, "paths").card.table()
    penalty, cap = every_way(table)
    assert penalty.dtype == np.float32
    assert is_plain(penalty, cap).tolist() == [True, *[False] * len(table.looks)]
    assert (penalty[1:] < 0).all()
    assert cap_macs(cap[1:], table.full).tolist() == plans(table).tolist()


def test_code_digest_is_another_for_other_code_or_another_use() -> None:
    made: list[tuple[str, *tuple[ModuleType, ...]]] = [
        ("a", base), ("b", base), ("a", onnx_scope), ("a", base, onnx_scope)
    ]  # fmt: skip
    assert len({code_digest(*each) for each in made}) == len(made)
    assert code_digest("a", base) == code_digest("a", base)
