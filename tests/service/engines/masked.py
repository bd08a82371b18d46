"""A plain numpy network to compare engines with: it computes all channels and masks by zeros."""

from __future__ import annotations

import numpy as np

from models.bundle import Bundle
from models.compute import MacTable, cap_macs, price
from models.config import GLANCE_TOP, PENALTY_MIDPOINT


class MaskedNetwork:
    """One image at a time, every channel computed, those beyond a width then set to zero."""

    def __init__(self, bundle: Bundle) -> None:
        self.config, self.agent = bundle.card.backbone, bundle.card.agent
        self.tensors = {k: v.astype(np.float64) for k, v in bundle.tensors.items()}
        self.table: MacTable = bundle.card.table()

    def run(
        self, image: np.ndarray, penalty: float, cap: float
    ) -> tuple[np.ndarray, list[int], int]:
        """Logits, widths and the MACs of what is not zero."""
        k, config = self.config.groups, self.config
        limit = int(cap_macs(cap, self.table.full))
        hidden = np.zeros(self.agent.hidden)
        if penalty == 0 and cap >= 1:
            logits, _, spent = self.along(image.astype(np.float64), 0, [k] * config.n_layers)
            return logits, [k] * config.n_layers, spent
        narrowest = [k] + [1] * (config.n_layers - 1)
        x, spent = self.layer(0, image.astype(np.float64), None, k, k)
        stream, widths, glance = None, [k], None
        for layer, shape in enumerate(config.layers[1:], 1):
            before = widths[-1]
            seen = x[: config.in_channels(layer, before)].mean((1, 2))
            if self.agent.glance and layer == 1:
                glance, end, macs = self.along(x, 1, narrowest)
                seen = self.seen(glance, end)
                spent += macs
            values, hidden, macs = self.values(layer, seen, before, penalty, hidden)
            allowed = spent + self.table.after()[layer, before - 1] <= limit
            width = 1 + int(np.argmax(np.where(allowed, values, -np.inf)))
            spent += macs
            if glance is not None and layer == 1 and width == 1:
                return glance, narrowest, spent
            stream = x if shape.reads == "stream" else stream
            x, macs = self.layer(layer, x, stream, before, width)
            widths.append(width)
            spent += macs
        logits, macs = self.head(x, widths[-1])
        return logits, widths, spent + macs

    def along(
        self, x: np.ndarray, start: int, widths: list[int]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Logits, last map and MACs of the layers from `start` on along a path."""
        stream, spent = None, 0
        for layer, width in list(enumerate(widths))[start:]:
            stream = x if self.config.layers[layer].reads == "stream" else stream
            x, macs = self.layer(layer, x, stream, widths[layer - 1], width)
            spent += macs
        logits, macs = self.head(x, widths[-1])
        return logits, x, spent + macs

    def seen(self, logits: np.ndarray, end: np.ndarray) -> np.ndarray:
        """What the agent sees of a glance."""
        shares = np.exp(logits) / np.exp(logits).sum()
        top = np.sort(shares)[::-1][:GLANCE_TOP]
        active = self.config.in_channels(self.config.n_layers, 1)
        return np.concatenate([shares, top, end[:active].mean((1, 2))])

    def layer(
        self, layer: int, x: np.ndarray, stream: np.ndarray | None, before: int, width: int
    ) -> tuple[np.ndarray, int]:
        k, shape = self.config.groups, self.config.layers[layer]
        reads_all = layer == 0 or shape.reads == "stream"
        weight = self.tensors[f"conv.{layer}.weight"]
        row = k - 1 if reads_all else before - 1
        y = convolve(x, weight, shape.stride, shape.padding)
        y *= self.tensors[f"conv.{layer}.scale"][row, :, None, None]
        y += self.tensors[f"conv.{layer}.shift"][row, :, None, None]
        computed = len(y) * width // k
        y[computed:] = 0
        read = len(x) if reads_all else len(x) * before // k
        macs = read * computed * shape.kernel**2 * y[0].size
        if shape.shortcut:
            assert stream is not None
            extra, projected = self.shortcut(layer, stream)
            y, macs = y + extra, macs + projected
        y = np.maximum(y, 0)
        return (max_pool(y, *shape.pool) if shape.pool else y), macs

    def shortcut(self, layer: int, stream: np.ndarray) -> tuple[np.ndarray, int]:
        shape, stride = self.config.layers[layer], self.config.layers[layer - 1].stride
        if shape.shortcut == "project":
            weight = self.tensors[f"projection.{layer}.weight"]
            y = convolve(stream, weight, stride, 0)
            return y + self.tensors[f"projection.{layer}.bias"][:, None, None], len(stream) * y.size
        if shape.shortcut == "pad":
            small = stream[:, ::stride, ::stride]
            missing = shape.out_channels - len(small)
            return np.concatenate([small, np.zeros((missing, *small.shape[1:]))]), 0
        return stream, 0

    def values(
        self, layer: int, seen: np.ndarray, before: int, penalty: float, hidden: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        def linear(name: str, features: np.ndarray, suffix: str = "") -> np.ndarray:
            weight = self.tensors[f"agent.{name}.weight{suffix}"][:, : len(features)]
            return weight @ features + self.tensors[f"agent.{name}.bias{suffix}"]

        encoded = np.maximum(linear(f"encoder.{layer}", seen), 0)
        if self.agent.form == "priced":
            told = max(penalty, 0)
            encoded = np.append(encoded, told / (told + PENALTY_MIDPOINT))
        ir, iz, in_ = np.split(linear("cell", encoded, "_ih"), 3)
        hr, hz, hn = np.split(linear("cell", hidden, "_hh"), 3)
        reset, update = sigmoid(ir + hr), sigmoid(iz + hz)
        hidden = (1 - update) * np.tanh(in_ + reset * hn) + update * hidden
        k = self.config.groups
        prices = price(self.table, self.agent.form)[layer, before - 1]
        n = self.agent.hidden
        macs = len(seen) * self.agent.encoding + 3 * n * (len(encoded) + n) + n * k
        return linear("decoder", hidden) - penalty * prices, hidden, macs

    def head(self, x: np.ndarray, width: int) -> tuple[np.ndarray, int]:
        whole = self.config.layers[-1].shortcut is not None
        read = len(x) if whole else len(x) * width // self.config.groups
        features = adaptive_pool(x, self.config.pool_to).ravel()
        macs, n = 0, read * self.config.pool_to**2
        for index, classes in enumerate(self.config.linears):
            features = np.maximum(features, 0) if index else features
            weight = self.tensors[f"head.{index}.weight"]
            features = weight @ features + self.tensors[f"head.{index}.bias"]
            macs, n = macs + n * classes, classes
        return features, macs


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    views = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))
    return views[:, ::stride, ::stride]


def convolve(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    return np.einsum("chwij,ocij->ohw", windows(x, weight.shape[-1], stride), weight)


def max_pool(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    spread = ((0, 0), (padding, padding), (padding, padding))
    return windows(np.pad(x, spread, constant_values=-np.inf), kernel, stride).max((3, 4))


def adaptive_pool(x: np.ndarray, pool_to: int) -> np.ndarray:
    size = x.shape[1]
    cuts = [slice(i * size // pool_to, -(-(i + 1) * size // pool_to)) for i in range(pool_to)]
    return np.array([[[plane[a, b].mean() for b in cuts] for a in cuts] for plane in x])
