from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, CalibrationPoint, Card, tensor_shapes
from models.compute import path_macs
from models.config import AgentConfig, BackboneConfig, ConvConfig
from models.preprocess import Preprocessing
from service.engines.onnx_graph import OnnxEngine
from tests.service.engines.masked import MaskedNetwork

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


FORMS = ["priced", "paper"]


@pytest.fixture(params=[*FORMS, *(f"{form} glance" for form in FORMS)])
def agent(request: pytest.FixtureRequest) -> AgentConfig:
    form, *glance = request.param.split()
    return AgentConfig(form, encoding=12, hidden=24, glance=bool(glance))


@pytest.fixture(params=FORMS)
def glancing(request: pytest.FixtureRequest) -> AgentConfig:
    return AgentConfig(request.param, encoding=12, hidden=24, glance=True)


def most(bundle: Bundle) -> float:
    """The cap that allows any path."""
    table, n_layers = bundle.card.table(), bundle.card.backbone.n_layers
    return float(path_macs(np.full((1, n_layers), table.groups), table, agent=True)[0] / table.full)


def mixed_rows(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, penalties and caps of all kinds, plain rows among the others."""
    penalty = np.tile(np.float32([0.3, 0, 1, 0.02]), 8)
    cap = np.maximum(np.repeat([1, 0.8, most(bundle), 0.6], 8), bundle.card.min_cap)
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
@pytest.mark.parametrize("form", FORMS)
def test_engine_mixed_rows_agree_with_masked_network(backbone: BackboneConfig, form: str) -> None:
    bundle = random_bundle(backbone, AgentConfig(form, encoding=12, hidden=24))
    widths = check_agreement(bundle, *mixed_rows(bundle))
    # The comparison is worth something only if the agent's paths differ.
    assert len(np.unique(widths, axis=0)) >= 4


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
def test_engine_glance_mixed_rows_agree_with_masked_network(
    backbone: BackboneConfig, glancing: AgentConfig
) -> None:
    chosen = []
    for seed in range(3):
        bundle = random_bundle(backbone, glancing, seed)
        images, penalty, cap = mixed_rows(bundle)
        widths = check_agreement(bundle, images, penalty, cap)
        chosen.extend(widths[(penalty > 0) | (cap < 1), 1])
    # Both answers are compared: the glance and, after it, the second pass.
    assert chosen.count(1) >= 3
    assert len(chosen) - chosen.count(1) >= 3


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, EXACT], ids=lambda b: b.name)
def test_engine_every_pair_of_widths_agrees_with_masked_network(backbone: BackboneConfig) -> None:
    bundle = random_bundle(backbone, AgentConfig(encoding=12, hidden=12))
    # All widths full cost more than the plain network, by the agent: no cap of 1 here.
    rows = random_images(backbone, 1), np.float32([1e-3]), np.array([2.0])
    for odd, even in itertools.product(range(1, 5), repeat=2):
        path = (4, *itertools.islice(itertools.cycle((odd, even)), backbone.n_layers - 1))
        widths = check_agreement(forced(bundle, path), *rows)
        assert widths.tolist() == [list(path)]


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, EXACT], ids=lambda b: b.name)
def test_engine_glance_every_pair_of_widths_agrees_with_masked_network(
    backbone: BackboneConfig,
) -> None:
    bundle = random_bundle(backbone, AgentConfig(encoding=12, hidden=12, glance=True))
    # Two passes may cost more than the plain network: no cap of 1 here.
    rows = random_images(backbone, 1), np.float32([1e-3]), np.array([2.0])
    for odd, even in [(1, 4), *itertools.product(range(2, 5), range(1, 5))]:
        path = (4, *itertools.islice(itertools.cycle((odd, even)), backbone.n_layers - 1))
        widths = check_agreement(forced(bundle, path), *rows)
        # Whatever the agent would choose later: width 1 of layer 1 is all there is.
        taken = path if odd > 1 else (4, *[1] * (backbone.n_layers - 1))
        assert widths.tolist() == [list(taken)]


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_glance_without_macs_for_a_second_pass_is_the_answer(
    backbone: BackboneConfig, glancing: AgentConfig
) -> None:
    bundle = forced(random_bundle(backbone, glancing), (4, 2) + (1,) * (backbone.n_layers - 2))
    table = bundle.card.table()
    first_more = table.start + int(table.after()[1, -1, 1])
    cap = (np.array([first_more - 1, first_more]) + 0.5) / table.full
    rows = random_images(backbone, 2), np.full(2, 1e-6, np.float32), cap
    widths = check_agreement(bundle, *rows)
    assert widths[0].tolist() == [4] + [1] * (backbone.n_layers - 1)
    assert widths[1, 1] == 2


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("n_layers", [2, 3])
def test_engine_glance_of_few_layers_agrees_with_masked_network(n_layers: int, groups: int) -> None:
    layers = LINEARS.layers[:n_layers]
    backbone = dataclasses.replace(LINEARS, layers=layers, groups=groups)
    bundle = random_bundle(backbone, AgentConfig(encoding=12, hidden=12, glance=True))
    widths = check_agreement(bundle, *mixed_rows(bundle))
    assert len(np.unique(widths[:, 1])) >= 2


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_caps_are_never_exceeded(backbone: BackboneConfig, agent: AgentConfig) -> None:
    bundle, images = random_bundle(backbone, agent), random_images(backbone, 16)
    engine, penalty = OnnxEngine(bundle, threads=1), np.full(16, 1e-6, np.float32)
    for cap in np.linspace(bundle.card.min_cap, most(bundle), 6):
        result = engine.run(images, penalty, np.full(16, cap))
        assert (result.macs <= cap * bundle.card.table().full).all()


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_cap_on_an_agent_that_wants_all_is_used_up_and_kept(
    backbone: BackboneConfig, agent: AgentConfig
) -> None:
    bundle = forced(random_bundle(backbone, agent), (4,) * backbone.n_layers)
    table = bundle.card.table()
    cap = np.linspace(bundle.card.min_cap, most(bundle), 9)
    rows = random_images(backbone, len(cap)), np.full(len(cap), 1e-6, np.float32), cap
    result = OnnxEngine(bundle, threads=1).run(*rows)
    check_agreement(bundle, *rows)
    assert (result.macs <= cap * table.full).all()
    assert (np.diff(result.macs) >= 0).all()
    assert len(set(result.macs)) >= 4


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_cap_of_exactly_a_paths_macs_allows_it(
    backbone: BackboneConfig, agent: AgentConfig
) -> None:
    path = [4] + [2] * (backbone.n_layers - 1)
    bundle = forced(random_bundle(backbone, agent), tuple(path))
    table = bundle.card.table()
    macs = path_macs(np.array([path]), table, agent=True)[0]
    # Half a MAC more, so that the share's rounding does not matter.
    cap = (np.array([macs, macs - 1]) + 0.5) / table.full
    images = random_images(backbone, 2)
    result = OnnxEngine(bundle, threads=1).run(images, np.full(2, 1e-6, np.float32), cap)
    assert result.macs[0] == macs
    assert result.widths[0].tolist() == path
    assert result.macs[1] < macs


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
