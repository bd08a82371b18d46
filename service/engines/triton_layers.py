"""The layers of a network for a batch in which each image has its own widths, on Triton's kernels.

Maps are (N, H, W, C); a width is (N,) int32, in groups, 0 for images that are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from service.engines.triton_kernels import conv_kernel, max_pool_kernel
from service.engines.triton_tuning import Tile

POOL_TILE = (64, 64)


@dataclass(frozen=True)
class Shortcut:
    """What a layer adds to its convolution.

    Attributes:
        maps: (N, S, S, C), its missing channels count as zeros. width: of `maps`.
        stride: between the positions that are added.
    """

    maps: Tensor
    width: Tensor
    stride: int = 1


@dataclass(frozen=True)
class Conv:
    """A convolution with its normalisation, ReLU and pooling.

    Attributes:
        weight: (K * K * c, C). scale, shift: (k, C) float32, a row per input width.
        kernel: K. groups: k, of input and output channels.
        pool: side of the windows of max-pooling without overlap, 1 or 2.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    relu: bool = False
    pool: int = 1

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, shift: Tensor, **rest: Any) -> Conv:
        """From a weight (C, c, K, K)."""
        flat = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        return cls(flat, scale.contiguous(), shift.contiguous(), weight.shape[2], **rest)

    @property
    def groups(self) -> int:
        return self.scale.shape[0]

    @property
    def outputs(self) -> int:
        return self.weight.shape[1]

    @property
    def inputs(self) -> int:
        return self.weight.shape[0] // self.kernel**2

    def prefix(self, channels: int, groups: int) -> int:
        """How many of the layer's input or output channels so many groups are."""
        # Those that groups do not divide are of images and classes, always whole.
        return min(-(-channels // self.groups) * groups, channels)

    def out_size(self, size: int) -> int:
        """Side of the maps that leave the layer, for a side of those that enter."""
        return ((size + 2 * self.padding - self.kernel) // self.stride + 1) // self.pool

    def shape_key(self, x: Tensor, shortcut: Shortcut | None) -> str:
        """What the speed depends on, the widths apart."""
        n, size = x.shape[:2]
        added = (shortcut.maps.shape[3], shortcut.stride) if shortcut else None
        shape = (self.kernel, self.stride, self.padding, self.pool, added)
        return f"{n} of {size}, {self.inputs} to {self.outputs}, {shape}, {x.dtype}"

    def __call__(
        self,
        x: Tensor,
        in_width: Tensor,
        out_width: Tensor,
        tile: Tile,
        *,
        most: int | None = None,
        shortcut: Shortcut | None = None,
        sums: bool = False,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            x: (N, S, S, c).
            most: groups that no image's output exceeds, by default all.
            sums: whether the sums of the output maps are wanted.
            out: where to write, by default new memory of the type of x.
        Returns: (N, S', S', C), and (N, C) float32 sums of each of these maps, if wanted.
        """
        n, size = x.shape[:2]
        side = self.out_size(size)
        out = x.new_empty(n, side, side, self.outputs) if out is None else out
        places = side**2 * self.pool**2
        row = triton.cdiv(places, tile.m) * tile.m if sums else places
        parts = (n, row // tile.m, self.outputs)
        partial = x.new_empty(parts, dtype=torch.float32) if sums else None
        maps, width = (shortcut.maps, shortcut.width) if shortcut else (None, None)
        added = 0 if maps is None else maps.shape[3]
        computed = self.prefix(self.outputs, most or self.groups)
        conv_kernel[triton.cdiv(n * row, tile.m), triton.cdiv(computed, tile.n)](
            x,
            self.weight,
            self.scale,
            self.shift,
            in_width,
            out_width,
            maps,
            width,
            out,
            partial,
            n,
            IN=self.inputs,
            OUT=self.outputs,
            IN_GROUP=self.prefix(self.inputs, 1),
            OUT_GROUP=self.prefix(self.outputs, 1),
            SIZE=size,
            OUT_SIZE=side,
            KERNEL=self.kernel,
            STRIDE=self.stride,
            PADDING=self.padding,
            RELU=self.relu,
            POOL=self.pool,
            ADDED=added,
            ADDED_GROUP=triton.cdiv(added, self.groups),
            ADDED_SIZE=0 if maps is None else maps.shape[1],
            ADDED_STRIDE=shortcut.stride if shortcut else 1,
            ROW=row,
            # A step of the reduction would otherwise be half empty.
            FLAT=2 * self.inputs <= tile.k,
            SUMS=sums,
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return out, None if partial is None else partial.sum(dim=1)


def max_pool(x: Tensor, width: Tensor, groups: int, pool: tuple[int, int, int]) -> Tensor:
    """Max-pooling by (kernel, stride, padding) of maps (N, S, S, C) of a width."""
    n, size, _, channels = x.shape
    kernel, stride, padding = pool
    side = (size + 2 * padding - kernel) // stride + 1
    out = x.new_empty(n, side, side, channels)
    tile_m, tile_n = POOL_TILE
    max_pool_kernel[triton.cdiv(n * side**2, tile_m), triton.cdiv(channels, tile_n)](
        x,
        width,
        out,
        n,
        CHANNELS=channels,
        GROUP=channels // groups,
        SIZE=size,
        OUT_SIZE=side,
        KERNEL=kernel,
        STRIDE=stride,
        PADDING=padding,
        BLOCK_M=tile_m,
        BLOCK_N=tile_n,
    )
    return out
