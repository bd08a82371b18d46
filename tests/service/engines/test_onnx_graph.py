"""The ONNX engine against a plain numpy network, which computes everything and masks by zeros."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, CalibrationPoint, Card, tensor_shapes
from models.compute import MacTable, cap_macs, price
from models.config import PENALTY_MIDPOINT, AgentConfig, BackboneConfig, ConvConfig
from models.preprocess import Preprocessing
from service.engines.onnx_graph import OnnxEngine

STEM = ConvConfig("0", "n0", 3, 8)


def conv(in_channels: int, out_channels: int, **rest: object) -> ConvConfig:
    return dataclasses.replace(STEM, in_channels=in_channels, out_channels=out_channels, **rest)


def block(in_channels: int, out_channels: int, stride: int, shortcut: str) -> list[ConvConfig]:
    first = conv(in_channels, out_channels, stride=stride, reads="stream")
    return [first, conv(out_channels, out_channels, shortcut=shortcut)]


CHAIN = BackboneConfig(
    "chain",
    image_size=18,
    layers=(
        conv(3, 8, padding=0),
        conv(8, 16, stride=2, kernel=5, padding=2),
        conv(16, 12, pool=(2, 2, 0)),
        conv(12, 16, kernel=1, padding=0),
        conv(16, 20),
    ),
    linears=(6,),
    linear_names=("head",),
)
RESIDUAL = BackboneConfig(
    "residual",
    image_size=15,
    layers=(
        conv(3, 8, pool=(3, 2, 1)),
        *block(8, 8, 1, "identity"),
        *block(8, 16, 2, "pad"),
        *block(16, 24, 2, "project"),
    ),
    linears=(5,),
    linear_names=("head",),
)
# The last maps, of side 5, do not divide into 2 × 2.
LINEARS = BackboneConfig(
    "linears",
    image_size=10,
    layers=(STEM, conv(8, 12), conv(12, 12, pool=(2, 2, 0))),
    linears=(14, 9, 4),
    linear_names=("a", "b", "c"),
    groups=2,
    pool_to=2,
)
EXACT = dataclasses.replace(LINEARS, name="exact", pool_to=5, groups=4)
HALVED = dataclasses.replace(LINEARS, name="halved", image_size=8)
THREE_GROUPS = dataclasses.replace(
    CHAIN, name="three groups", groups=3, layers=(conv(3, 6), conv(6, 9), conv(9, 12))
)
BACKBONES = [CHAIN, RESIDUAL, LINEARS, EXACT, HALVED, THREE_GROUPS]


def random_bundle(backbone: BackboneConfig, agent: AgentConfig, seed: int = 0) -> Bundle:
    """A bundle whose agent takes different paths for different images."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(backbone, agent).items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        values = rng.normal(size=shape) * np.sqrt(2 / fan_in)
        if name.startswith("agent.encoder") and name.endswith("weight"):
            values *= 4
        if name == "agent.decoder.bias":
            values *= 0
        if name.endswith("scale"):
            values = rng.uniform(0.5, 1.5, shape)
        half = name.startswith("conv") and name.endswith("weight")
        tensors[name] = values.astype(np.float16 if half else np.float32)
    size = backbone.image_size
    card = Card(
        name=backbone.name,
        labels=tuple(str(index) for index in range(backbone.classes)),
        backbone=backbone,
        agent=agent,
        preprocessing=Preprocessing(size, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        calibration=(CalibrationPoint(1.0, 0.2, 0.5),),
    )
    return Bundle(card, tensors, Path(backbone.name), f"{backbone.name} {agent} {seed}")


def forced(bundle: Bundle, path: tuple[int, ...]) -> Bundle:
    """The bundle with an agent that knows only the layer, and chooses this path.

    Its encoding of a layer is the layer's unit vector, which the cell passes on to the decoder.
    """
    tensors, config = dict(bundle.tensors), bundle.card.agent
    for name in tensors:
        if name.startswith("agent"):
            tensors[name] = np.zeros_like(tensors[name])
    new_gate, update_gate = 2 * config.hidden, config.hidden
    tensors["agent.cell.bias_ih"][update_gate:new_gate] = -30
    for layer in range(1, len(path)):
        tensors[f"agent.encoder.{layer}.bias"][layer] = 1
        tensors["agent.cell.weight_ih"][new_gate + layer, layer] = 1
        tensors["agent.decoder.weight"][path[layer] - 1, layer] = 100
    return dataclasses.replace(bundle, tensors=tensors)


def random_images(backbone: BackboneConfig, n: int, seed: int = 1) -> np.ndarray:
    """Noise in front of a colour, as the agent sees the means of maps."""
    rng, size = np.random.default_rng(seed), backbone.image_size
    images = rng.normal(size=(n, 3, 1, 1)) * 2 + rng.normal(size=(n, 3, size, size))
    return images.astype(np.float32)


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
        x, stream = image.astype(np.float64), None
        hidden = np.zeros(self.agent.hidden)
        widths, spent = [], 0
        is_plain = penalty == 0 and cap >= 1
        for layer, shape in enumerate(config.layers):
            before = widths[-1] if layer else k
            if layer == 0 or is_plain:
                width = k
            else:
                values, hidden, macs = self.values(layer, x, before, penalty, hidden)
                allowed = spent + self.table.after()[layer, before - 1] <= limit
                width = 1 + int(np.argmax(np.where(allowed, values, -np.inf)))
                spent += macs
            stream = x if shape.reads == "stream" else stream
            x, macs = self.layer(layer, x, stream, before, width)
            widths.append(width)
            spent += macs
        logits, macs = self.head(x, widths[-1])
        return logits, widths, spent + macs

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
        self, layer: int, x: np.ndarray, before: int, penalty: float, hidden: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        def linear(name: str, features: np.ndarray, suffix: str = "") -> np.ndarray:
            weight = self.tensors[f"agent.{name}.weight{suffix}"]
            return weight @ features + self.tensors[f"agent.{name}.bias{suffix}"]

        encoded = np.maximum(linear(f"encoder.{layer}", x.mean((1, 2))), 0)
        if self.agent.form == "priced":
            encoded = np.append(encoded, penalty / (penalty + PENALTY_MIDPOINT))
        ir, iz, in_ = np.split(linear("cell", encoded, "_ih"), 3)
        hr, hz, hn = np.split(linear("cell", hidden, "_hh"), 3)
        reset, update = sigmoid(ir + hr), sigmoid(iz + hz)
        hidden = (1 - update) * np.tanh(in_ + reset * hn) + update * hidden
        k = self.config.groups
        prices = price(self.table, self.agent.form)[layer, before - 1]
        shape = self.config.layers[layer]
        read = len(x) if shape.reads == "stream" else len(x) * before // k
        n = self.agent.hidden
        macs = read * self.agent.encoding + 3 * n * (len(encoded) + n) + n * k
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


@pytest.fixture(params=["priced", "paper"])
def agent(request: pytest.FixtureRequest) -> AgentConfig:
    return AgentConfig(request.param, encoding=12, hidden=24)


def mixed_rows(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, penalties and caps of all kinds, plain rows among the others."""
    penalty = np.tile(np.float32([0.3, 0, 1, 0.02]), 8)
    cap = np.maximum(np.repeat([1, 0.8, 1, 0.6], 8), bundle.card.min_cap)
    return random_images(bundle.card.backbone, len(cap)), penalty, cap


def check_agreement(bundle: Bundle, *rows: np.ndarray) -> np.ndarray:
    """Compare the engine with the masked network; returns the widths."""
    result = OnnxEngine(bundle, threads=1).run(*rows)
    network = MaskedNetwork(bundle)
    wanted = [network.run(*row) for row in zip(*rows, strict=True)]
    logits, widths, macs = (np.array(part) for part in zip(*wanted, strict=True))
    np.testing.assert_array_equal(result.widths, widths)
    np.testing.assert_array_equal(result.macs, macs)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-4, atol=1e-4)
    return result.widths


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
def test_engine_mixed_rows_agree_with_masked_network(
    backbone: BackboneConfig, agent: AgentConfig
) -> None:
    bundle = random_bundle(backbone, agent)
    widths = check_agreement(bundle, *mixed_rows(bundle))
    # The comparison is worth something only if the agent's paths differ.
    assert len(np.unique(widths, axis=0)) >= 4


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, EXACT], ids=lambda b: b.name)
def test_engine_every_pair_of_widths_agrees_with_masked_network(backbone: BackboneConfig) -> None:
    bundle = random_bundle(backbone, AgentConfig(encoding=12, hidden=12))
    # All widths full cost more than the plain network, by the agent: no cap of 1 here.
    rows = random_images(backbone, 1), np.float32([1e-3]), np.array([2.0])
    for odd, even in itertools.product(range(1, 5), repeat=2):
        path = (4, *itertools.islice(itertools.cycle((odd, even)), backbone.n_layers - 1))
        widths = check_agreement(forced(bundle, path), *rows)
        assert widths.tolist() == [list(path)]


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_caps_are_never_exceeded(backbone: BackboneConfig, agent: AgentConfig) -> None:
    bundle, images = random_bundle(backbone, agent), random_images(backbone, 16)
    engine, penalty = OnnxEngine(bundle, threads=1), np.full(16, 1e-6, np.float32)
    for cap in np.linspace(bundle.card.min_cap, 0.95, 5):
        result = engine.run(images, penalty, np.full(16, cap))
        assert (result.macs <= cap * bundle.card.table().full).all()


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_cap_on_an_agent_that_wants_all_is_used_up_and_kept(
    backbone: BackboneConfig, agent: AgentConfig
) -> None:
    bundle = forced(random_bundle(backbone, agent), (4,) * backbone.n_layers)
    table = bundle.card.table()
    cap = np.linspace(bundle.card.min_cap, 0.95, 5)
    # The lowest cap leaves the cheapest path; exactly that path's MACs must be allowed too.
    cap = np.append(cap, table.least / table.full * (1 + 1e-12))
    rows = random_images(backbone, len(cap)), np.full(len(cap), 1e-6, np.float32), cap
    result = OnnxEngine(bundle, threads=1).run(*rows)
    check_agreement(bundle, *rows)
    assert (result.macs <= cap * table.full).all()
    assert result.macs[-1] == table.least
    assert (np.diff(result.macs[:-1]) >= 0).all()
    assert len(set(result.macs)) >= 4


def test_engine_plain_rows_cost_the_full_network_and_ignore_the_agent(agent: AgentConfig) -> None:
    bundle = random_bundle(CHAIN, agent)
    for name in bundle.tensors:
        if name.startswith("agent"):
            bundle.tensors[name] = np.full_like(bundle.tensors[name], np.nan)
    result = OnnxEngine(bundle, threads=1).run(
        random_images(CHAIN, 3), np.zeros(3, np.float32), np.ones(3)
    )
    assert (result.widths == 4).all()
    assert (result.macs == bundle.card.table().full).all()
    assert np.isfinite(result.logits).all()


def test_engine_rows_reordered_give_reordered_answers(agent: AgentConfig) -> None:
    bundle = random_bundle(RESIDUAL, agent)
    engine = OnnxEngine(bundle, threads=1)
    images, penalty, cap = mixed_rows(bundle)
    order = np.random.default_rng(2).permutation(len(images))
    result = engine.run(images, penalty, cap)
    shuffled = engine.run(images[order], penalty[order], cap[order])
    np.testing.assert_array_equal(shuffled.widths, result.widths[order])
    np.testing.assert_array_equal(shuffled.macs, result.macs[order])
    np.testing.assert_allclose(shuffled.logits, result.logits[order], rtol=1e-5, atol=1e-5)


def test_engine_no_rows_gives_no_answers(agent: AgentConfig) -> None:
    engine = OnnxEngine(random_bundle(CHAIN, agent), threads=1)
    result = engine.run(random_images(CHAIN, 0), np.zeros(0, np.float32), np.zeros(0))
    assert result.logits.shape == (0, 6)
    assert result.widths.shape == (0, 5)
    assert result.macs.shape == (0,)


def test_engine_one_layer_runs_without_decisions() -> None:
    backbone = dataclasses.replace(LINEARS, layers=(STEM,))
    bundle = random_bundle(backbone, AgentConfig())
    images = random_images(backbone, 2)
    result = OnnxEngine(bundle, threads=1).run(images, np.float32([0, 1]), np.ones(2))
    wanted = [MaskedNetwork(bundle).run(image, 0, 1)[0] for image in images]
    np.testing.assert_allclose(result.logits, wanted, rtol=1e-4, atol=1e-4)
    assert result.widths.tolist() == [[2], [2]]


def test_engine_cache_directory_second_start_gives_the_same(tmp_path: Path) -> None:
    bundle = random_bundle(CHAIN, AgentConfig())
    rows = mixed_rows(bundle)
    first = OnnxEngine(bundle, threads=1, cache_dir=tmp_path).run(*rows)
    second = OnnxEngine(bundle, threads=1, cache_dir=tmp_path).run(*rows)
    uncached = OnnxEngine(bundle, threads=1).run(*rows)
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.logits, uncached.logits)
