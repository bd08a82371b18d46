"""A plain numpy network to compare engines with: it computes all channels and masks by zeros."""

from __future__ import annotations

import numpy as np

from models.bundle import Bundle
from models.compute import MacTable, price
from models.config import LOOK_LEAST_LOG, LOOK_TOP, PENALTY_MIDPOINT, ConvConfig


class MaskedNetwork:
    """One image at a time, every channel computed, those beyond a width then set to zero."""

    def __init__(self, bundle: Bundle) -> None:
        self.config, self.agent = bundle.card.backbone, bundle.card.agent
        self.tensors = {k: v.astype(np.float64) for k, v in bundle.tensors.items()}
        self.table: MacTable = bundle.card.table()
        self.rests: dict[tuple[int, ...], int] = {}
        self.costs: dict[int, int] = {}

    def run(
        self, image: np.ndarray, penalty: float, cap: float
    ) -> tuple[np.ndarray, list[int], int]:
        """Logits, widths and the MACs of what is not zero."""
        limit = cap * self.table.full
        if penalty == 0 and cap >= 1:
            path = [self.config.groups] * self.config.n_layers
            logits, _, spent = self.along(image, path)
            return logits, path, spent
        if self.agent.form == "paths":
            logits, ran, spent = self.by_looks(image, penalty, limit)
            return logits, list(self.agent.paths[ran[-1]]), spent
        return self.by_layer(image, penalty, limit)

    def by_looks(
        self, image: np.ndarray, penalty: float, limit: float
    ) -> tuple[np.ndarray, list[int], int]:
        """As `run`, but the numbers of all paths run: one after another, until the agent stops."""
        ran, spent, logits = [0], 0, None
        while True:
            here = ran[-1]
            seen = image[:, :, ::-1] if self.mirrored(here) else image
            answer, end, macs = self.along(seen, list(self.agent.paths[here]))
            weight = self.agent.blend if here > 0 else 0
            logits = (1 - weight) * answer + weight * logits if weight else answer
            spent += macs
            if here >= self.agent.deciding:
                return logits, ran, spent
            gains, macs = self.gains(here, logits, end, penalty)
            spent += macs
            best, most = here, 0.0
            for later, gain in enumerate(gains, start=here + 1):
                cost = self.cost(later)
                value = gain - penalty * cost / self.table.full
                if value > most and spent + cost <= limit:
                    best, most = later, value
            if best == here:
                return logits, ran, spent
            ran.append(best)

    def mirrored(self, number: int) -> bool:
        """The second path, and every second from the full network down; the narrowest is not."""
        n = len(self.agent.paths)
        return self.agent.views == "both" and number in ({1, *range(n - 2, 0, -2)} - {n - 1})

    def cost(self, number: int) -> int:
        """MACs of one of the agent's paths and of the decision after it: what running it gives."""
        if number not in self.costs:
            size = self.config.image_size
            logits, end, macs = self.along(
                np.zeros((3, size, size)), list(self.agent.paths[number])
            )
            if number < self.agent.deciding:
                macs += self.gains(number, logits, end, 0)[1]
            self.costs[number] = macs
        return self.costs[number]

    def by_layer(
        self, image: np.ndarray, penalty: float, limit: float
    ) -> tuple[np.ndarray, list[int], int]:
        """As `run`: one width after another."""
        k, config, spent = self.config.groups, self.config, 0
        hidden = np.zeros(self.agent.hidden)
        x, block, widths = image.astype(np.float64), None, [k, k]
        for layer, shape in enumerate(config.layers):
            earlier, before = widths[-2:]
            width = earlier if shape.shortcut == "identity" else k
            if layer > 0 and shape.shortcut != "identity":
                seen = x[: config.in_channels(layer, before)].mean((1, 2))
                values, hidden, macs = self.values(layer, seen, earlier, before, penalty, hidden)
                rest = [self.least_rest(layer, [*widths, width]) for width in range(1, k + 1)]
                allowed = spent + macs + np.array(rest) <= limit
                width = 1 + int(np.argmax(np.where(allowed, values, -np.inf)))
                spent += macs
            widths.append(width)
            before_it = x
            x, macs = self.layer(layer, x, block, widths)
            block, spent = before_it, spent + macs
        logits, macs = self.head(x, widths[-1])
        return logits, widths[2:], spent + macs

    def least_rest(self, layer: int, widths: list[int]) -> int:
        """The least MACs from a layer on, whose width is the last of `widths`: all rests tried."""
        k, table, following = self.config.groups, self.table, layer + 1
        macs = int(table.layers[layer, widths[-3] - 1, widths[-2] - 1, widths[-1] - 1])
        if following == self.config.n_layers:
            return macs + int(table.head[widths[-1] - 1])
        if self.config.layers[following].shortcut == "identity":
            return macs + self.least_rest(following, [*widths, widths[-2]])
        key = (following, *widths[-2:])
        if key not in self.rests:
            step = int(table.agent[following, widths[-1] - 1])
            rests = [self.least_rest(following, [*widths, width]) for width in range(1, k + 1)]
            self.rests[key] = step + min(rests)
        return macs + self.rests[key]

    def along(self, image: np.ndarray, path: list[int]) -> tuple[np.ndarray, np.ndarray, int]:
        """Logits, last map and MACs of a path."""
        x, block, spent = image.astype(np.float64), None, 0
        widths = [self.config.groups] * 2 + path
        for layer in range(len(path)):
            before_it = x
            x, macs = self.layer(layer, x, block, widths[: layer + 3])
            block, spent = before_it, spent + macs
        logits, macs = self.head(x, path[-1])
        return logits, x, spent + macs

    def layer(
        self, layer: int, x: np.ndarray, block: np.ndarray | None, widths: list[int]
    ) -> tuple[np.ndarray, int]:
        """A layer's maps and MACs.

        Args:
            block: what entered the layer before.
            widths: all up to this layer's.
        """
        shape, projection = self.config.layers[layer], self.config.projection(layer)
        earlier, before, own = widths[-3:]
        y, macs = self.convolution(f"conv.{layer}", shape, x, before, own)
        if shape.shortcut == "pad":
            stride = self.config.layers[layer - 1].stride
            small, padded = block[:, ::stride, ::stride], np.zeros_like(y)
            padded[: len(small)] = small[: len(y)]
            y = y + padded
        elif projection:
            projected, extra = self.convolution(
                f"projection.{layer}", projection, block, earlier, own
            )
            y, macs = y + projected, macs + extra
        elif shape.shortcut:
            y = y + block
        y = np.maximum(y, 0)
        y[len(y) * own // self.config.groups :] = 0
        return (max_pool(y, *shape.pool) if shape.pool else y), macs

    def convolution(
        self, name: str, shape: ConvConfig, x: np.ndarray, before: int, own: int
    ) -> tuple[np.ndarray, int]:
        k = self.config.groups
        y = convolve(x, self.tensors[f"{name}.weight"], shape.stride, shape.padding)
        y *= self.tensors[f"{name}.scale"][before - 1, :, None, None]
        y += self.tensors[f"{name}.shift"][before - 1, :, None, None]
        computed = len(y) * own // k
        y[computed:] = 0
        return y, len(x) * before // k * computed * shape.kernel**2 * y[0].size

    def gains(
        self, look: int, logits: np.ndarray, end: np.ndarray, penalty: float
    ) -> tuple[np.ndarray, int]:
        """Gains of the paths after `look`, and the MACs spent on them."""
        shares = np.maximum(np.exp(logits - logits.max()), 1e-300)
        logs = np.maximum(np.log(shares / shares.sum()), LOOK_LEAST_LOG)
        top, active = np.sort(logs)[::-1][: LOOK_TOP[self.agent.sees]], 0
        if self.agent.sees == "maps":
            active = len(end) * self.agent.paths[look][-1] // self.config.groups
        logs = np.append(logs if active else [], top)
        told = max(penalty, 0) / (max(penalty, 0) + PENALTY_MIDPOINT)
        x, macs = np.concatenate([np.exp(logs), logs, end[:active].mean((1, 2)), [told]]), 0
        for layer in range(3):
            weight = self.tensors[f"agent.looks.{look}.{layer}.weight"]
            x = weight @ x + self.tensors[f"agent.looks.{look}.{layer}.bias"]
            x, macs = np.maximum(x, 0) if layer < 2 else x, macs + weight.size
        return x, macs

    def values(
        self,
        layer: int,
        seen: np.ndarray,
        earlier: int,
        before: int,
        penalty: float,
        hidden: np.ndarray,
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
        prices = price(self.table, self.agent.form)[layer, earlier - 1, before - 1]
        n = self.agent.hidden
        macs = len(seen) * self.agent.encoding + 3 * n * (len(encoded) + n) + n * k
        return linear("decoder", hidden) - penalty * prices, hidden, macs

    def head(self, x: np.ndarray, width: int) -> tuple[np.ndarray, int]:
        features = adaptive_pool(x, self.config.pool_to).ravel()
        macs, n = 0, len(x) * width // self.config.groups * self.config.pool_to**2
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
