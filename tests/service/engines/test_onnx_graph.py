from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle
from models.compute import path_macs
from models.config import BackboneConfig, Sees, Views
from service.engines.base import Result
from service.engines.onnx_graph import OnnxEngine
from tests.service.engines.masked import MaskedNetwork
from tests.service.engines.support import (
    BACKBONES,
    CHAIN,
    EXACT,
    FORMS,
    LINEARS,
    PADDED,
    RESIDUAL,
    STEM,
    check_same,
    mixed_rows,
    most,
    path_of,
    random_bundle,
    random_images,
    spread_gains,
)


def forced(bundle: Bundle, path: tuple[int, ...]) -> Bundle:
    """The bundle with an agent that knows only the layer, and decides for this path.

    Its encoding of a layer is the layer's unit vector, which the cell passes on to the decoder.
    """
    tensors, config = dict(bundle.tensors), bundle.card.agent
    for name in tensors:
        if name.startswith("agent"):
            tensors[name] = np.zeros_like(tensors[name])
    new_gate, update_gate = 2 * config.hidden, config.hidden
    tensors["agent.cell.bias_ih"][update_gate:new_gate] = -30
    for layer in bundle.card.table().decisions:
        tensors[f"agent.encoder.{layer}.bias"][layer] = 1
        tensors["agent.cell.weight_ih"][new_gate + layer, layer] = 1
        tensors["agent.decoder.weight"][path[layer] - 1, layer] = 100
    return dataclasses.replace(bundle, tensors=tensors)


def check_agreement(bundle: Bundle, *rows: np.ndarray) -> np.ndarray:
    """Compare the engine with the masked network; returns the widths."""
    result = OnnxEngine(bundle, threads=1).run(*rows)
    network = MaskedNetwork(bundle)
    wanted = [network.run(*row) for row in zip(*rows, strict=True)]
    check_same(result, Result(*(np.array(part) for part in zip(*wanted, strict=True))))
    return result.widths


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
@pytest.mark.parametrize("form", FORMS)
def test_engine_mixed_rows_agree_with_masked_network(backbone: BackboneConfig, form: str) -> None:
    bundle = random_bundle(backbone, form)
    widths = check_agreement(bundle, *mixed_rows(bundle))
    # The comparison is worth something only if the agent's paths differ.
    assert len(np.unique(widths, axis=0)) >= 3


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, PADDED], ids=lambda b: b.name)
def test_engine_takes_the_path_that_an_agent_decides_for(backbone: BackboneConfig) -> None:
    bundle = random_bundle(backbone, "priced")
    # All widths full cost more than the plain network, by the agent: no cap of 1 here.
    rows = random_images(backbone, 1), np.float32([1e-3]), np.array([2.0])
    for odd, even in [(1, 4), (4, 1), (2, 3), (3, 2), (1, 1), (4, 4)]:
        path = path_of(backbone, (4, *[odd, even] * backbone.n_layers))
        widths = check_agreement(forced(bundle, path), *rows)
        assert widths.tolist() == [list(path)]


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, EXACT, PADDED], ids=lambda b: b.name)
def test_engine_each_path_is_chosen_where_the_cap_allows_no_dearer(
    backbone: BackboneConfig,
) -> None:
    bundle = random_bundle(backbone, "paths")
    table, paths = bundle.card.table(), np.array(bundle.card.agent.paths)
    first, *others = table.looks
    macs = np.array([first, *(first + more for more in others)])
    rows = random_images(backbone, len(paths)), np.full(len(paths), -1e3, np.float32)
    widths = check_agreement(bundle, *rows, (macs + 0.5) / table.full)
    np.testing.assert_array_equal(widths, paths)
    # One MAC less, and only the first look is left where it was.
    widths = check_agreement(bundle, *rows, (macs - 0.5) / table.full)
    assert (widths != paths).any(axis=1).tolist() == [False] + [True] * (len(paths) - 1)


@pytest.mark.parametrize(
    ("looks", "sees", "views"),
    [
        (0, "maps", "both"),
        (1, "maps", "both"),
        (2, "maps", "both"),
        (0, "answer", "both"),
        (0, "answer", "image"),
    ],
)
@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL, EXACT, PADDED], ids=lambda b: b.name)
def test_engine_runs_path_after_path_as_the_masked_network(
    backbone: BackboneConfig, looks: int, sees: Sees, views: Views
) -> None:
    bundle, n = random_bundle(backbone, "paths", looks=looks, sees=sees, views=views), 24
    engine, network = OnnxEngine(bundle, threads=1), MaskedNetwork(bundle)
    images = random_images(backbone, n, seed=2)
    penalty = np.geomspace(0.05, 20, n).astype(np.float32)
    paths, table = bundle.card.agent.paths, bundle.card.table()
    for cap in (0.7, 1.0, 1.6, math.inf):
        result = engine.run(images, penalty, np.full(n, cap))
        asked = zip(images, penalty.tolist(), strict=True)
        each = [network.by_looks(image, price, cap * table.full) for image, price in asked]
        logits, runs, macs = zip(*each, strict=True)
        widths = np.array([paths[run[-1]] for run in runs])
        check_same(result, Result(np.array(logits), widths, np.array(macs)))
        assert macs == tuple(sum(table.looks[number] for number in run) for run in runs)
        assert max(macs) <= cap * table.full
    # Without a limit some run three paths or more, or, where only the first decides, none do.
    lengths = set(map(len, runs))
    assert {1, 2} <= lengths
    assert max(lengths) == 2 if looks == 1 else max(lengths) > 2
    assert looks or max(macs) > table.full


def test_engine_tells_the_agent_the_penalty() -> None:
    bundle = random_bundle(CHAIN, "paths")
    for name in bundle.tensors:
        if name.startswith("agent."):
            bundle.tensors[name][:] = 0
    # Of all features only the penalty counts: from 0.2 on, which is told as 0.5, all is to gain.
    bundle.tensors["agent.looks.0.0.weight"][0, -1] = 1000
    bundle.tensors["agent.looks.0.0.bias"][0] = -499.9
    bundle.tensors["agent.looks.0.1.weight"][0, 0] = 1000
    bundle.tensors["agent.looks.0.2.weight"][-1, 0] = 1000
    penalty = np.float32([-1e-6, 0, 0.1, 0.199, 0.201, 1, 50])
    n = len(penalty)
    widths = check_agreement(bundle, random_images(CHAIN, n), penalty, np.full(n, np.inf))
    # The penalty 0 asks no agent, and below it the agent is paid to go on.
    assert [row[0] == 4 for row in widths.tolist()] == [True, True, False, False, True, True, True]


def test_engine_looks_of_sure_answers_agree() -> None:
    bundle = random_bundle(RESIDUAL, "paths")
    bundle.tensors["head.0.weight"] *= 40
    spread_gains(bundle)
    rows = random_images(RESIDUAL, 16), np.full(16, 0.3, np.float32), np.full(16, np.inf)
    widths = check_agreement(bundle, *rows)
    assert len(np.unique(widths, axis=0)) >= 2


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
@pytest.mark.parametrize("form", FORMS)
def test_engine_caps_are_never_exceeded(backbone: BackboneConfig, form: str) -> None:
    bundle, images = random_bundle(backbone, form), random_images(backbone, 16)
    engine, penalty = OnnxEngine(bundle, threads=1), np.full(16, 1e-6, np.float32)
    for cap in np.linspace(bundle.card.min_cap, most(bundle), 6):
        result = engine.run(images, penalty, np.full(16, cap))
        assert (result.macs <= cap * bundle.card.table().full).all()


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
@pytest.mark.parametrize("form", FORMS)
def test_engine_cap_on_an_agent_that_wants_all_is_used_up_and_kept(
    backbone: BackboneConfig, form: str
) -> None:
    bundle = random_bundle(backbone, form)
    table = bundle.card.table()
    cap = np.linspace(bundle.card.min_cap, most(bundle), 9)
    rows = random_images(backbone, len(cap)), np.full(len(cap), -1e3, np.float32), cap
    result = OnnxEngine(bundle, threads=1).run(*rows)
    check_agreement(bundle, *rows)
    assert (result.macs <= cap * table.full).all()
    assert len(set(result.macs)) >= 4


@pytest.mark.parametrize("backbone", [CHAIN, RESIDUAL], ids=lambda b: b.name)
def test_engine_cap_of_exactly_a_decided_paths_macs_allows_it(backbone: BackboneConfig) -> None:
    path = path_of(backbone, (4, *[2] * backbone.n_layers))
    bundle = forced(random_bundle(backbone, "priced"), path)
    table = bundle.card.table()
    macs = path_macs(np.array([path]), table, agent=True)[0]
    # Half a MAC more, so that the share's rounding does not matter.
    cap = (np.array([macs, macs - 1]) + 0.5) / table.full
    images = random_images(backbone, 2)
    result = OnnxEngine(bundle, threads=1).run(images, np.full(2, 1e-6, np.float32), cap)
    assert result.macs[0] == macs
    assert result.widths[0].tolist() == list(path)
    assert result.macs[1] < macs


@pytest.mark.parametrize("form", FORMS)
def test_engine_plain_rows_cost_the_full_network_and_ignore_the_agent(form: str) -> None:
    bundle = random_bundle(CHAIN, form)
    for name in bundle.tensors:
        if name.startswith("agent"):
            bundle.tensors[name] = np.full_like(bundle.tensors[name], np.nan)
    result = OnnxEngine(bundle, threads=1).run(
        random_images(CHAIN, 3), np.zeros(3, np.float32), np.ones(3)
    )
    assert (result.widths == 4).all()
    assert (result.macs == bundle.card.table().full).all()
    assert np.isfinite(result.logits).all()


@pytest.mark.parametrize("form", FORMS)
def test_engine_rows_reordered_give_reordered_answers(form: str) -> None:
    bundle = random_bundle(RESIDUAL, form)
    engine = OnnxEngine(bundle, threads=1)
    rows = mixed_rows(bundle)
    order = np.random.default_rng(2).permutation(len(rows[0]))
    result = engine.run(*rows)
    shuffled = engine.run(*(row[order] for row in rows))
    check_same(shuffled, Result(result.logits[order], result.widths[order], result.macs[order]))


@pytest.mark.parametrize("form", FORMS)
def test_engine_no_rows_gives_no_answers(form: str) -> None:
    engine = OnnxEngine(random_bundle(CHAIN, form), threads=1)
    result = engine.run(random_images(CHAIN, 0), np.zeros(0, np.float32), np.zeros(0))
    assert result.logits.shape == (0, 6)
    assert result.widths.shape == (0, 5)
    assert result.macs.shape == (0,)


@pytest.mark.parametrize("form", FORMS)
def test_engine_one_layer_agrees_with_masked_network(form: str) -> None:
    bundle = random_bundle(dataclasses.replace(LINEARS, layers=(STEM,)), form)
    check_agreement(bundle, *mixed_rows(bundle))


@pytest.mark.parametrize("form", FORMS)
def test_engine_cache_directory_second_start_gives_the_same(tmp_path: Path, form: str) -> None:
    bundle = random_bundle(CHAIN, form)
    rows = mixed_rows(bundle)
    first = OnnxEngine(bundle, threads=1, cache_dir=tmp_path).run(*rows)
    graphs = sorted(tmp_path.iterdir())
    second = OnnxEngine(bundle, threads=1, cache_dir=tmp_path).run(*rows)
    uncached = OnnxEngine(bundle, threads=1).run(*rows)
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.logits, uncached.logits)
    # The plain network's and the agent's; or one of all paths, the whole one among them.
    assert len(graphs) == (1 if bundle.card.agent.paths else 2)
