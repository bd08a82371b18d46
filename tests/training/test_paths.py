"""Tests of training/paths.py."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import backbones
from models.compute import mac_table, path_macs
from models.config import AgentConfig, check_paths
from models.network import Network
from models.weights import folded
from tests.models.support import stream_backbone, tiny_backbone
from tests.training.support import PREPROCESSING, chain, coloured, lively_network, tiny_run
from training import paths
from training.batches import in_order
from training.config import Agent
from training.errors import ConfigError
from training.measure import along
from training.paths import choose, ends, find, loss, narrowing

PLAIN = torch.autocast("cpu", enabled=False)
# Of three layers of 4 channels in 2 groups on 6 × 6 pixels, 3 classes. To halve a layer saves, per
# pixel and tap, 3·2 + 2·4 MACs, 4·2 + 2·4 or 4·2; once the one before or after it is halved, less.
LOSSES = {
    (2, 2, 2): 1.0,
    (1, 2, 2): 1.45,  # rises by 0.032 for a MAC saved
    (2, 1, 2): 1.50,  # 0.031: the dearest rise, and yet the best bargain
    (2, 2, 1): 1.30,  # 0.037
    (1, 1, 2): 1.75,  # 0.25 for 3·2 + 2·2: 0.025
    (2, 1, 1): 1.62,  # 0.12 for 2·2: 0.030
    (1, 1, 1): 9.0,
}


@pytest.fixture
def images():
    return coloured(40)


def test_narrowing_takes_the_least_loss_for_the_macs_saved(monkeypatch):
    monkeypatch.setattr(paths, "loss", lambda network, batches, path, autocast: LOSSES[path])
    preprocessing = replace(PREPROCESSING, size=6)
    found = narrowing(Network(chain(3, 4, 2)), coloured(1), preprocessing, PLAIN)
    assert found == [(2, 2, 2), (2, 1, 2), (1, 1, 2), (1, 1, 1)]


@pytest.mark.parametrize("backbone", [tiny_backbone(), stream_backbone()])
def test_narrowing_goes_from_whole_to_narrowest_by_a_group_of_a_layer(backbone, images):
    backbone = replace(backbone, image_size=12)
    found = narrowing(folded(lively_network(backbone)), images, PREPROCESSING, PLAIN)
    assert found[0] == (3,) * backbone.n_layers
    assert found[-1] == (1,) * backbone.n_layers
    check_paths(backbone, AgentConfig("paths", paths=tuple(reversed(found))))
    free = [i for i in range(backbone.n_layers) if not backbone.tied(i)]
    for wider, narrower in pairwise(found):
        steps = [wider[i] - narrower[i] for i in free]
        assert sorted(steps) == [0] * (len(free) - 1) + [1]


def test_narrowing_compares_what_the_network_does_to_the_images(images):
    network = folded(lively_network(chain(4, 8, 4, 12)))
    _, second, *_ = narrowing(network, images, PREPROCESSING, PLAIN)

    def measured(path):
        outcome = along(network, images, PREPROCESSING, np.array([path]))
        logs = outcome.log_probabilities[np.arange(len(images)), images.labels]
        return -logs.mean(), outcome.mean_fraction

    whole_loss, _ = measured((4,) * 4)
    narrower = [tuple(3 if i == layer else 4 for i in range(4)) for layer in range(4)]
    rises = [(loss - whole_loss) / (1 - share) for loss, share in map(measured, narrower)]
    assert second == narrower[int(np.argmin(rises))]


def test_loss_is_the_mean_over_all_images_of_unequal_batches(images):
    network = folded(lively_network(chain(3, 4, 2, 12)))
    (batch,) = in_order(images, PREPROCESSING, 40, network.device)
    expected = F.cross_entropy(network(batch.images, (2, 1, 2)), batch.labels).item()
    parts = list(in_order(images, PREPROCESSING, 32, network.device))
    assert loss(network, parts, (2, 1, 2), PLAIN) == pytest.approx(expected, rel=1e-5)


# Choosing


BACKBONE = backbones.build("mcifarnet", 10)
# One layer after the other, a group at a time.
CHAIN = [tuple(min(4, max(1, 4 + 3 * layer - step)) for layer in range(8)) for step in range(25)]


def agent_of(hidden=64, looks=0):
    """An agent whose paths are to be chosen."""
    return AgentConfig("paths", hidden=hidden, paths=(CHAIN[-1], CHAIN[0]), looks=looks)


def _looks(agent):
    """MACs of the agent's paths, each with the decision after it."""
    return np.array(mac_table(BACKBONE, agent).looks)


@pytest.mark.parametrize("looks", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_choose_takes_the_narrowest_the_whole_and_as_many_between_as_asked(count, looks):
    agent = choose(BACKBONE, CHAIN, count, agent_of(looks=looks))
    assert (agent.form, agent.hidden, agent.looks) == ("paths", 64, looks)
    assert len(agent.paths) == count + 2
    assert agent.paths[0] == (1,) * 8
    assert agent.paths[-1] == (4,) * 8
    assert len(set(agent.paths)) == len(agent.paths)
    assert set(agent.paths) <= set(CHAIN)
    check_paths(BACKBONE, agent)
    assert (np.diff(_looks(agent)) > 0).all()


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 6])
def test_choose_dearest_between_is_the_last_that_fits_after_the_narrowest(count, looks):
    agent = choose(BACKBONE, CHAIN, count, agent_of(looks=looks))
    first, *_, dearest, full = _looks(agent)
    dearer = CHAIN[CHAIN.index(agent.paths[-2]) - 1]
    assert first + dearest <= full
    assert dearer != CHAIN[0]
    swapped = replace(agent, paths=(*agent.paths[:-2], dearer, agent.paths[-1]))
    assert first + _looks(swapped)[-2] > full


@pytest.mark.parametrize("hidden", [16, 64, 200, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_choose_of_any_chain_fits_the_dearest_between_and_ends_with_the_whole_once(seed, hidden):
    rng, path, chain = np.random.default_rng(seed), [4] * 8, [(4,) * 8]
    while max(path) > 1:
        layer = rng.choice(np.flatnonzero(np.array(path) > 1))
        path[layer] -= 1
        chain.append(tuple(path))
    for count in (1, 3, 10, 40):
        agent = choose(BACKBONE, chain, count, agent_of(hidden))
        macs = _looks(agent)
        assert macs[0] + macs[-2] <= macs[-1] or len(macs) == 2
        assert [set(p) == {4} for p in agent.paths] == [False] * (len(macs) - 1) + [True]
        assert len(set(agent.paths)) == len(agent.paths) <= count + 2


def test_choose_between_are_evenly_spaced_in_the_logarithm_of_compute():
    agent = choose(BACKBONE, CHAIN, 4, agent_of())
    table = mac_table(BACKBONE, agent)
    steps = np.diff(np.log(table.looks[:-1]))
    coarse = -np.diff(np.log(path_macs(np.array(CHAIN), table, agent=False)))
    assert np.abs(steps - steps.mean()).max() <= coarse.max()


def test_choose_of_a_short_chain_takes_all_that_fit():
    short = [CHAIN[i] for i in (0, 1, 8, 16, 24)]
    agent = choose(BACKBONE, short, 10, agent_of())
    # After the narrowest, all but the first group of the first layer is too much.
    assert agent.paths == (*short[:1:-1], short[0])


@pytest.mark.parametrize("chain", [[CHAIN[0], CHAIN[-1]], [CHAIN[0], CHAIN[1], CHAIN[-1]]])
def test_choose_where_nothing_between_fits_leaves_the_narrowest_and_the_whole(chain):
    assert choose(BACKBONE, chain, 6, agent_of()).paths == (CHAIN[-1], CHAIN[0])


def test_ends_are_the_agent_of_the_narrowest_and_the_whole():
    assert ends(BACKBONE, Agent(hidden=7, looks=1, views="image")) == replace(
        agent_of(7, looks=1), sees="answer"
    )


def test_ends_where_a_look_is_no_cheaper_than_the_full_network_says_so():
    with pytest.raises(ConfigError, match=r"setting agent\.hidden is 20000, make it less"):
        ends(BACKBONE, Agent(hidden=20_000))


# The stage


def test_find_looks_at_held_out_images_only_and_once(tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    found = find(replace(run, train=None), lively_network(run.backbone))
    assert len(found.paths) == run.config.paths.count + 2
    wanted = run.config.agent
    assert (found.hidden, found.looks, found.sees) == (wanted.hidden, wanted.looks, "answer")
    assert found.views == wanted.views == "both"
    assert found.blend == 0  # until it is found
    assert found.paths[-1] == (4,) * 8
    monkeypatch.setattr(paths, "narrowing", None)
    assert find(run, lively_network(run.backbone, seed=1)) == found


def test_find_compares_paths_on_images_of_all_classes_alike(tmp_path, monkeypatch):
    used = []

    def recorded(network, images, preprocessing, autocast):
        used.append(np.bincount(images.labels).tolist())
        return [(width,) * 8 for width in (4, 3, 2, 1)]

    monkeypatch.setattr(paths, "narrowing", recorded)
    run = tiny_run(tmp_path, paths={"images": 9})
    by_class = run.held_out.subset(np.argsort(run.held_out.labels))
    find(replace(run, held_out=by_class), lively_network(run.backbone))
    assert used == [[3, 3, 3]]


def test_find_compares_paths_on_as_many_images_as_set(tmp_path, monkeypatch):
    used = []

    def counted(network, images, preprocessing, autocast):
        used.append(len(images))
        return [(width,) * 8 for width in (4, 3, 2, 1)]

    monkeypatch.setattr(paths, "narrowing", counted)
    for images in (7, 10_000):
        run = tiny_run(tmp_path / str(images), paths={"images": images})
        find(run, lively_network(run.backbone))
    assert used == [7, 30]
