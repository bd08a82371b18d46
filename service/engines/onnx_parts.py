"""What the ONNX graphs of a backbone consist of: its parts, each for the widths that are given.

Widths count from 0 here, so that they index tables.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.bundle import Bundle
from models.config import ConvConfig
from service.engines.base import Floats
from service.engines.onnx_scope import Scope

# numpy has found out what the processor can do, but has no public name for it.
_FEATURES = import_module("numpy._core._multiarray_umath").__cpu_features__
# float32 values in a register; the runtime computes channels in blocks of so many.
LANES = 16 if _FEATURES.get("AVX512F") else 8
# Kernel, stride and padding.
_PAIRED_POOLS = ((2, 2, 0), (3, 2, 1))


class NetworkWriter:
    """Writes the backbone's parts, each for the widths that it is given."""

    def __init__(self, bundle: Bundle) -> None:
        self.config = bundle.card.backbone
        self._tensors = bundle.tensors

    def image(self, n: int | str) -> onnx.ValueInfoProto:
        """The graph's input: (n, 3, H, W) float32."""
        size = self.config.image_size
        channels = self.config.layers[0].in_channels
        return helper.make_tensor_value_info("image", TensorProto.FLOAT, [n, channels, size, size])

    def logits(self, n: int | str) -> onnx.ValueInfoProto:
        """The graph's output: (n, classes) float32."""
        return helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, self.config.classes])

    def layer(
        self, scope: Scope, layer: int, i: int, o: int, maps: str, shortcut: str | None
    ) -> str:
        """Convolution, normalisation, shortcut, ReLU and pooling."""
        config = self.config.layers[layer]
        if shortcut is None and self._pairs_pay(layer, o):
            return self._pooled_pairs(scope, layer, i, o, maps)
        result = self._convolve(scope, f"conv.{layer}", config, i, o, maps)
        if shortcut is not None:
            result = scope.op("Add", result, shortcut)
        result = scope.op("Relu", result)
        if config.pool is None:
            return result
        kernel, stride, padding = config.pool
        return scope.op(
            "MaxPool", result, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4
        )

    def shortcut(self, scope: Scope, layer: int, i: int, o: int, maps: str) -> str:
        """What a layer that ends a block adds of the block's input, if not that as it is.

        Args:
            i: width of the block's input. o: width of the layer.
        """
        projection = self.config.projection(layer)
        if projection is not None:
            return self._convolve(scope, f"projection.{layer}", projection, i, o, maps)
        # Pooling over single pixels subsamples.
        stride = self.config.layers[layer - 1].stride
        maps = scope.op("MaxPool", maps, kernel_shape=[1, 1], strides=[stride] * 2)
        read = self.config.in_channels(layer - 1, i + 1)
        # What is padded by less than nothing is cut.
        missing = self.config.out_channels(layer, o + 1) - read
        return scope.op("Pad", maps, scope.constant([0, 0, 0, 0, 0, missing, 0, 0], np.int64))

    def features(self, scope: Scope, maps: str) -> str:
        """The last maps pooled and flattened, channel by channel."""
        size, pool_to = self.config.sizes()[-1], self.config.pool_to
        if pool_to == 1:
            maps = scope.op("GlobalAveragePool", maps)
        elif size != pool_to:
            means = _adaptive_means(size, pool_to)
            rows = scope.op("MatMul", scope.constant(means), maps)
            maps = scope.op("MatMul", rows, scope.constant(means.T))
        return scope.op("Flatten", maps)

    def first_linear(self, scope: Scope, i: int, features: str) -> str:
        """The linear layer that reads the pooled maps."""
        read = self.config.in_channels(self.config.n_layers, i + 1) * self.config.pool_to**2
        return self._linear(scope, 0, read, features)

    def other_linears(self, scope: Scope, features: str) -> str:
        """The linear layers after the first."""
        for index in range(1, len(self.config.linears)):
            read = self.config.linears[index - 1]
            features = self._linear(scope, index, read, scope.op("Relu", features))
        return features

    def _linear(self, scope: Scope, index: int, read: int, features: str) -> str:
        weight = self._floats(f"head.{index}.weight")[:, :read]
        return scope.linear(features, weight, self._floats(f"head.{index}.bias"))

    def _convolve(
        self, scope: Scope, name: str, config: ConvConfig, i: int, o: int, maps: str
    ) -> str:
        """A convolution for its widths, the normalisation folded in."""
        weight, bias = self._filter(name, config, i, o)
        return scope.op(
            "Conv",
            maps,
            scope.constant(weight),
            scope.constant(bias),
            kernel_shape=[config.kernel] * 2,
            strides=[config.stride] * 2,
            pads=[config.padding] * 4,
        )

    def _filter(self, name: str, config: ConvConfig, i: int, o: int) -> tuple[Floats, Floats]:
        """Weight (O, I, K, K) and bias (O,) of a convolution for its widths."""
        k = self.config.groups
        # The image is always whole, so its channels need not divide into groups.
        read, computed = config.in_channels * (i + 1) // k, config.out_channels * (o + 1) // k
        weight = self._floats(f"{name}.weight")[:computed, :read]
        scale = self._floats(f"{name}.scale")[i, :computed]
        return weight * scale[:, None, None, None], self._floats(f"{name}.shift")[i, :computed]

    def _pairs_pay(self, layer: int, o: int) -> bool:
        """Whether a layer computes so few channels that two pixels' fit into one register."""
        config, size = self.config.layers[layer], self.config.sizes()[layer]
        few = 2 * self.config.out_channels(layer, o + 1) <= LANES
        return few and config.pool in _PAIRED_POOLS and size % 2 == 0

    def _pooled_pairs(self, scope: Scope, layer: int, i: int, o: int, maps: str) -> str:
        """A layer whose convolution computes two neighbours of a row at once, as channels.

        The runtime computes as many channels as a register holds, whether they are there or not.
        Even pixels come first, then odd ones, which see the image a stride further right. Pooling
        is over the column, and then over the two and, if it is of 3, the odd pixel left of them.
        """
        config = self.config.layers[layer]
        assert config.pool is not None
        kernel, stride, padding = config.kernel, config.stride, config.padding
        pool, _, pad = config.pool
        weight, bias = self._filter(f"conv.{layer}", config, i, o)
        even, odd = (
            np.pad(weight, ((0, 0), (0, 0), (0, 0), sides)) for sides in ((0, stride), (stride, 0))
        )
        unread = (self._read(layer) + 2 * padding - kernel) % stride
        pairs = scope.op(
            "Conv",
            maps,
            scope.constant(np.concatenate([even, odd])),
            scope.constant(np.concatenate([bias, bias])),
            kernel_shape=[kernel, kernel + stride],
            strides=[stride, 2 * stride],
            pads=[padding, padding, padding, max(padding - unread, 0)],
        )
        pairs = scope.op(
            "MaxPool",
            scope.op("Relu", pairs),
            kernel_shape=[pool, 1],
            strides=[2, 1],
            pads=[pad, 0, pad, 0],
        )
        first, second = scope.ops("Split", [pairs], 2, axis=1)
        if pool == 3:
            second = scope.op("MaxPool", second, kernel_shape=[1, 2], pads=[0, 1, 0, 0])
        return scope.op("Max", first, second)

    def _read(self, layer: int) -> int:
        """Side of the maps that a layer without a shortcut reads, in pixels."""
        if layer == 0:
            return self.config.image_size
        before = self.config.layers[layer - 1]
        return before.pooled_size(self.config.sizes()[layer - 1])

    def _floats(self, name: str) -> Floats:
        return self._tensors[name].astype(np.float32)


def _adaptive_means(size: int, pool_to: int) -> Floats:
    """(pool_to, size), the average over the windows of adaptive pooling."""
    means = np.zeros((pool_to, size), np.float32)
    for row, cells in enumerate(means):
        start, stop = row * size // pool_to, -(-(row + 1) * size // pool_to)
        cells[start:stop] = 1 / (stop - start)
    return means
