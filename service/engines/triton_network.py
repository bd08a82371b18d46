"""A bundle's backbone on Triton's kernels: a batch of which each image has its own widths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.bundle import Bundle
from models.config import ConvConfig
from service.engines.triton_layers import Conv, Shortcut, max_pool
from service.engines.triton_tuning import Tile, Tuner

# Pooling that the convolution's kernel does itself.
FUSED_POOL = (2, 2, 0)
# Layers of fewer channels reduce over all positions and channels in one.
FEW_CHANNELS = 16
# The step of widths and paths that is whole: the image's. What linear layers give is whole, too.
WHOLE = 0

# Gives a tensor of the bundle by its name, on the device, in float32.
Read = Callable[[str], Tensor]


class TritonNetwork:
    """The backbone of a bundle, on a device, in a type of numbers; sums are float32."""

    def __init__(
        self, bundle: Bundle, device: torch.device, dtype: torch.dtype, tuner: Tuner
    ) -> None:
        self.config, self._dtype, self._tuner = bundle.card.backbone, dtype, tuner

        def read(name: str) -> Tensor:
            return torch.from_numpy(bundle.tensors[name]).to(device, torch.float32)

        self._convs = [
            self._conv(read, f"conv.{index}", layer)
            for index, layer in enumerate(self.config.layers)
        ]
        self._projections = {
            index: self._conv(read, f"projection.{index}", projection, relu=False)
            for index in range(self.config.n_layers)
            if (projection := self.config.projection(index))
        }
        self._linears = [self._linear(read, index) for index in range(len(self.config.linears))]

    def __call__(
        self, images: Tensor, widths: Tensor, path: Sequence[int], logits: Tensor
    ) -> Tensor:
        """Run images, each at its own widths.

        Args:
            images: (N, H, W, 3).
            widths: (1 + L, N) int32, groups of each layer after those of the image, which are all
                (`WHOLE`); 0 throughout for images that are left alone.
            path: the 1 + L groups that images have at most: tiles are made for them.
            logits: (N, classes) float32, written for the images that are run.
        Returns: (N, C) float32, the means of the last maps.
        """
        n, last = len(images), self.config.n_layers - 1
        x = block = images
        sums: Tensor | None = None
        for index, (layer, conv) in enumerate(zip(self.config.layers, self._convs, strict=True)):
            steps = index, index + 1
            shortcut = self._shortcut(index, block, widths, path)
            summed = index == last and layer.pool in (None, FUSED_POOL)
            block = x
            x, sums = self._run(conv, x, widths, path, steps, shortcut=shortcut, sums=summed)
            if layer.pool not in (None, FUSED_POOL):
                assert layer.pool is not None
                x = max_pool(x, widths[index + 1], self.config.groups, layer.pool)
        means = (
            x.mean((1, 2), dtype=torch.float32) if sums is None else sums / x[0, :, :, 0].numel()
        )
        x = self._features(x, means)
        for index, linear in enumerate(self._linears):
            steps = (WHOLE if index else self.config.n_layers), WHOLE
            out = logits.view(n, 1, 1, -1) if index + 1 == len(self._linears) else None
            x, _ = self._run(linear, x, widths, path, steps, out=out)
        return means

    def _run(
        self,
        conv: Conv,
        x: Tensor,
        widths: Tensor,
        path: Sequence[int],
        steps: tuple[int, int],
        *,
        shortcut: Shortcut | None = None,
        sums: bool = False,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run a layer whose input and output have the widths of these steps."""
        ins, outs = steps
        most = path[outs]
        run = functools.partial(conv, x, most=most, shortcut=shortcut, sums=sums)

        # Made by the first call, which warms up and is not timed; most layers try no tile.
        @functools.cache
        def full() -> tuple[Tensor, Tensor]:
            reads, computes = (torch.full_like(widths[WHOLE], path[step]) for step in steps)
            return reads, computes

        def trial(tile: Tile) -> object:
            return run(*full(), tile)

        shares = (path[ins], most, conv.groups, sums)
        key = f"{conv.shape_key(x, shortcut)}, {shares}"
        few = conv.inputs < FEW_CHANNELS
        # A tile wider than the path would multiply zeros.
        reduced = conv.weight.shape[0] if few else conv.prefix(conv.inputs, path[ins])
        tile = self._tuner.tile(key, reduced, conv.prefix(conv.outputs, most), trial)
        return run(widths[ins], widths[outs], tile, out=out)

    def _shortcut(
        self, index: int, block: Tensor, widths: Tensor, path: Sequence[int]
    ) -> Shortcut | None:
        """What the layer adds of its block's input."""
        kind = self.config.layers[index].shortcut
        if kind is None:
            return None
        earlier = index - 1
        if kind == "project":
            maps, _ = self._run(self._projections[index], block, widths, path, (earlier, index + 1))
            return Shortcut(maps, widths[index + 1])
        return Shortcut(block, widths[earlier], self.config.layers[index - 1].stride)

    def _features(self, x: Tensor, means: Tensor) -> Tensor:
        """What the linear layers read: (N, P, P, C) of the last maps (N, S, S, C)."""
        pool_to = self.config.pool_to
        if pool_to == 1:
            return means[:, None, None].to(self._dtype)
        if pool_to == x.shape[1]:
            return x
        return (
            F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), pool_to).permute(0, 2, 3, 1).contiguous()
        )

    def _conv(self, read: Read, name: str, layer: ConvConfig, *, relu: bool = True) -> Conv:
        return Conv.of(
            read(f"{name}.weight").to(self._dtype),
            read(f"{name}.scale"),
            read(f"{name}.shift"),
            stride=layer.stride,
            padding=layer.padding,
            relu=relu,
            pool=2 if layer.pool == FUSED_POOL else 1,
        )

    def _linear(self, read: Read, index: int) -> Conv:
        """A linear layer, as the convolution of a map with a kernel of the map's size."""
        weight, bias = (read(f"head.{index}.{part}") for part in ("weight", "bias"))
        side = 1 if index else self.config.pool_to
        shape = (len(weight), -1, side, side)
        shift = bias.expand(self.config.groups, -1)
        return Conv.of(
            weight.view(shape).to(self._dtype),
            torch.ones_like(shift),
            shift,
            relu=index + 1 < len(self.config.linears),
        )
