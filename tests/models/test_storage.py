"""Tests of models/storage.py."""

from __future__ import annotations

import numpy as np
import pytest

from models.storage import pack, unpack

FILTERS = "conv.0.weight"


def tensors():
    rng = np.random.default_rng(0)
    shapes = {
        FILTERS: (6, 5, 3, 3),
        "projection.2.weight": (4, 5, 1, 1),
        "conv.0.scale": (4, 6),
        "head.0.weight": (3, 8),
        "head.0.bias": (3,),
        "agent.looks.0.0.weight": (7, 4),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_float16_rounds_weights_of_the_backbone_and_nothing_else():
    whole, packed = tensors(), pack(tensors(), "float16")
    rounded = {name for name, value in packed.items() if value.dtype == np.float16}
    assert rounded == {FILTERS, "projection.2.weight", "head.0.weight"}
    for name, value in unpack(packed).items():
        assert (value == (whole[name].astype(np.float16) if name in rounded else whole[name])).all()


def test_int8_keeps_filters_to_half_a_step_and_all_else_as_float16_does():
    whole, packed = tensors(), pack(tensors(), "int8")
    small = {name for name, value in packed.items() if value.dtype == np.int8}
    assert small == {FILTERS, "projection.2.weight"}
    found = unpack(packed)
    assert found.keys() == whole.keys()
    for name in small:
        assert found[name].dtype == np.float32
        step = np.abs(whole[name]).max(axis=(1, 2, 3), keepdims=True) / 127
        assert (np.abs(found[name] - whole[name]) <= 0.5001 * step).all()
        assert (np.abs(packed[name]).max(axis=(1, 2, 3)) == 127).all()
    like = pack(whole, "float16")
    assert all((found[name] == like[name]).all() for name in whole.keys() - small)


def test_int8_filters_of_very_different_size_are_all_kept():
    whole = tensors()
    whole[FILTERS] *= np.array([1e-6, 1e-3, 1, 1e3, 1e6, 0], np.float32)[:, None, None, None]
    found = unpack(pack(whole, "int8"))[FILTERS]
    largest = np.abs(whole[FILTERS]).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(found - whole[FILTERS]) <= largest / 250).all()
    assert (found[5] == 0).all()


@pytest.mark.parametrize("step", [None, np.ones(5, np.float32), np.ones((6, 1), np.float32)])
def test_bytes_without_their_steps_are_refused(step):
    packed = pack(tensors(), "int8")
    del packed["conv.0.step"]
    if step is not None:
        packed["conv.0.step"] = step
    with pytest.raises(ValueError, match=r"conv\.0\.weight is of bytes, without a step"):
        unpack(packed)
