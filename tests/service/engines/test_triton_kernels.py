from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from service.engines.triton_layers import Conv, Shortcut, max_pool
from service.engines.triton_tuning import CANDIDATES, Tile
from tests.service.engines.triton_support import DEVICE, INTERPRETED, TILE, unread, widths

K = 4
# Each pair of an input and an output width, and among them an image that is left alone.
PAIRS = [*itertools.product(range(1, K + 1), repeat=2)]
PAIRS.insert(5, (0, 0))
LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def channels(width: int, most: int) -> int:
    return min(width * -(-most // K), most)


def some_maps(size: int, most: int, groups: list[int], dtype: torch.dtype) -> Tensor:
    """(N, size, size, most), NaN beyond each image's groups."""
    maps = unread((len(groups), size, size, most), dtype)
    for row, width in enumerate(groups):
        n = channels(width, most)
        maps[row, ..., :n] = torch.randn(size, size, n, device=DEVICE)
    return maps


def some_conv(
    inputs: int, outputs: int, kernel: int, dtype: torch.dtype = torch.float32, **rest: int
) -> tuple[Conv, Tensor]:
    """A layer and its weight (outputs, inputs, kernel, kernel), of outputs about as large as 1."""
    weight = torch.randn(outputs, inputs, kernel, kernel, device=DEVICE) / inputs**0.5 / kernel
    scale, shift = torch.rand(K, outputs, device=DEVICE) + 0.5, torch.randn(K, outputs).to(DEVICE)
    weight = weight.to(dtype)
    return Conv.of(weight, scale, shift, **rest), weight.float()


def expected(
    conv: Conv, weight: Tensor, image: Tensor, pair: tuple[int, int], shortcut: Tensor | None = None
) -> Tensor:
    """(side, side, C) of one image (size, size, c), computed for its widths by PyTorch."""
    read, computed = channels(pair[0], conv.inputs), channels(pair[1], conv.outputs)
    x = image[..., :read].float().permute(2, 0, 1)
    y = F.conv2d(x, weight[:computed, :read], stride=conv.stride, padding=conv.padding)
    row = pair[0] - 1
    y = y * conv.scale[row, :computed, None, None] + conv.shift[row, :computed, None, None]
    if shortcut is not None:
        n = min(computed, shortcut.shape[2])
        y[:n] += shortcut[..., :n].float().permute(2, 0, 1)
    y = torch.relu(y) if conv.relu else y
    return (F.max_pool2d(y, conv.pool) if conv.pool > 1 else y).permute(1, 2, 0)


def check(
    conv: Conv,
    weight: Tensor,
    size: int,
    pairs: list[tuple[int, int]],
    tile: Tile = TILE,
    block: tuple[int, int, int] | None = None,
    sums: bool = False,
) -> None:
    """Compare a layer with PyTorch on images of these widths.

    Args:
        block: channels, stride and width of a shortcut to add.
        sums: whether to compare the maps' sums as well.
    """
    dtype, side = conv.weight.dtype, conv.out_size(size)
    reads, computes = ([pair[end] for pair in pairs] for end in (0, 1))
    x = some_maps(size, conv.inputs, reads, dtype)
    shortcut, added = None, [None] * len(pairs)
    if block:
        most, stride, width = block
        groups = [width * (read > 0) for read in reads]
        maps = some_maps(side * stride - (stride > 1), most, groups, dtype)
        shortcut = Shortcut(maps, widths(*groups), stride)
        added = [maps[row, ::stride, ::stride, : channels(width, most)] for row in range(len(x))]
    out = torch.full((len(x), side, side, conv.outputs), 77.0, dtype=dtype, device=DEVICE)
    _, summed = conv(
        x, widths(*reads), widths(*computes), tile, shortcut=shortcut, sums=sums, out=out
    )
    for row, pair in enumerate(pairs):
        n = channels(pair[1], conv.outputs)
        assert (out[row, ..., n:] == 77).all()
        if n:
            wanted = expected(conv, weight, x[row], pair, added[row])
            torch.testing.assert_close(
                out[row, ..., :n].float(), wanted, rtol=LIMIT[dtype], atol=LIMIT[dtype]
            )
            if sums:
                atol = 1e-4 * side**2
                torch.testing.assert_close(summed[row, :n], wanted.sum((0, 1)), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "size", "rest"),
    [
        (8, 12, 3, 7, {"padding": 1}),
        (12, 20, 3, 9, {"padding": 1, "stride": 2, "relu": True}),
        (20, 8, 1, 5, {"stride": 2}),
        (4, 8, 5, 8, {"padding": 2, "relu": True}),
        (8, 8, 3, 7, {"relu": True}),
        (8, 72, 3, 6, {"padding": 1, "relu": True, "pool": 2}),
        (12, 8, 3, 7, {"padding": 1, "relu": True, "pool": 2}),
        (8, 12, 4, 4, {}),
    ],
)
def test_conv_all_width_pairs_as_pytorch(
    dtype: torch.dtype, inputs: int, outputs: int, kernel: int, size: int, rest: dict[str, int]
) -> None:
    torch.manual_seed(0)
    check(*some_conv(inputs, outputs, kernel, dtype, **rest), size, PAIRS)


@pytest.mark.parametrize("pair", [(1, 4), (4, 1), (2, 3)])
def test_conv_one_image_as_pytorch(pair: tuple[int, int]) -> None:
    torch.manual_seed(1)
    check(*some_conv(8, 12, 3, padding=1), 5, [pair])


@pytest.mark.parametrize("tile", [Tile(32, 16, 16), Tile(64, 32, 16), Tile(16, 16, 32)])
def test_conv_tiles_smaller_than_maps_and_reductions(tile: Tile) -> None:
    torch.manual_seed(2)
    pairs = [(4, 4), (0, 0), (1, 3), (3, 1)]
    check(*some_conv(40, 24, 2, relu=True, pool=2), 6, pairs, tile)


@pytest.mark.parametrize("pool", [1, 2])
def test_conv_sums_its_maps_image_by_image(pool: int) -> None:
    torch.manual_seed(7)
    pairs = [(4, 4), (0, 0), (1, 3), (3, 1)]
    # A map is a part of a tile, or takes several, the last of them in part.
    for tile in (Tile(64, 32, 128), Tile(16, 16, 128)):
        check(*some_conv(8, 20, 3, relu=True, pool=pool), 7, pairs, tile, sums=True)


@pytest.mark.parametrize("tile", CANDIDATES)
def test_conv_every_tile_of_the_tuner(tile: Tile) -> None:
    torch.manual_seed(3)
    # Some of the tiles have room for twice the bytes on large GPUs alone.
    kernel, dtype = (1, torch.float32) if INTERPRETED else (3, torch.bfloat16)
    check(*some_conv(64, 72, kernel, dtype), 5, [(2, 4), (4, 2), (3, 3)], tile)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(12, 1, 2), (8, 2, 4), (20, 1, 3)])
def test_conv_adds_a_shortcut_padded_cut_or_subsampled(
    dtype: torch.dtype, block: tuple[int, int, int]
) -> None:
    torch.manual_seed(4)
    check(*some_conv(8, 12, 3, dtype, padding=1, relu=True), 5, PAIRS, block=block)


def test_conv_image_and_classes_that_groups_do_not_divide() -> None:
    torch.manual_seed(5)
    check(*some_conv(3, 8, 3, padding=1), 6, [(K, 1), (K, 4), (0, 0), (K, 3)])
    check(*some_conv(8, 10, 1), 1, [(1, K), (3, K), (0, 0), (4, K)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)])
def test_max_pool_as_pytorch(dtype: torch.dtype, pool: tuple[int, int, int]) -> None:
    torch.manual_seed(6)
    groups = [1, 4, 0, 3, 2]
    x = some_maps(7, 20, groups, dtype)
    out = max_pool(x, widths(*groups), K, pool)
    for row, width in enumerate(groups):
        if not width:
            continue
        n = channels(width, 20)
        wanted = F.max_pool2d(x[row, ..., :n].permute(2, 0, 1).float(), *pool).permute(1, 2, 0)
        assert torch.equal(out[row, ..., :n].float(), wanted)
